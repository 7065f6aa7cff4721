"""The states of a spoken dialogue at the device: what can happen, and one table; a missing pair is an error."""

from __future__ import annotations

from enum import Enum


class TalkState(Enum):
    """Where the dialogue stands."""

    IDLE = "nobody speaks"
    RECORDING = "somebody speaks, nothing is on its way yet"
    STREAMING = "somebody speaks, and it goes up"
    PROCESSING = "the question is over, the answer has not begun"
    RECEIVING = "the answer comes, too little of it to play yet"
    PLAYING = "the answer plays"
    ERROR = "something failed; IDLE again by itself"


class TalkInput(Enum):
    """What can happen."""

    SPEECH = "somebody begins to speak, or the button is pressed"
    SENT = "the first piece of the question is on its way"
    SILENCE = "the speaker has finished, or the button is let go"
    STORED = "the question is over and kept for later: the link is down"
    ANSWER = "sound of an answer has come, from the server or from the cache"
    READY = "enough of the answer is there to play"
    FINISHED = "the answer has been played to its end"
    LOST = "the link is gone"
    FAULT = "a device, a codec or the server failed, or a state took too long"
    RECOVERED = "the error has been shown for its time"


_S, _I = TalkState, TalkInput
TALK_TABLE: dict[tuple[TalkState, TalkInput], TalkState] = {
    (_S.IDLE, _I.SPEECH): _S.RECORDING,
    (_S.IDLE, _I.ANSWER): _S.RECEIVING,
    (_S.IDLE, _I.LOST): _S.IDLE,
    (_S.RECORDING, _I.SENT): _S.STREAMING,
    (_S.RECORDING, _I.STORED): _S.IDLE,
    (_S.RECORDING, _I.ANSWER): _S.RECORDING,  # of an earlier question: not played
    (_S.RECORDING, _I.LOST): _S.RECORDING,
    (_S.STREAMING, _I.SILENCE): _S.PROCESSING,
    (_S.STREAMING, _I.ANSWER): _S.STREAMING,  # the server speaks along: played at once
    (_S.STREAMING, _I.READY): _S.STREAMING,
    (_S.STREAMING, _I.LOST): _S.RECORDING,
    (_S.PROCESSING, _I.ANSWER): _S.RECEIVING,
    (_S.PROCESSING, _I.FINISHED): _S.IDLE,  # an answer without sound
    (_S.PROCESSING, _I.SPEECH): _S.RECORDING,
    (_S.PROCESSING, _I.LOST): _S.IDLE,
    (_S.RECEIVING, _I.ANSWER): _S.RECEIVING,
    (_S.RECEIVING, _I.READY): _S.PLAYING,
    (_S.RECEIVING, _I.FINISHED): _S.IDLE,
    (_S.RECEIVING, _I.SPEECH): _S.RECORDING,
    (_S.RECEIVING, _I.LOST): _S.IDLE,
    (_S.PLAYING, _I.ANSWER): _S.PLAYING,
    (_S.PLAYING, _I.READY): _S.PLAYING,
    (_S.PLAYING, _I.FINISHED): _S.IDLE,
    (_S.PLAYING, _I.SPEECH): _S.RECORDING,  # barge-in
    (_S.PLAYING, _I.LOST): _S.PLAYING,  # what has come plays to its end
    (_S.ERROR, _I.RECOVERED): _S.IDLE,
    (_S.ERROR, _I.ANSWER): _S.ERROR,
    (_S.ERROR, _I.LOST): _S.ERROR,
    **{(state, _I.FAULT): _S.ERROR for state in TalkState},
}
