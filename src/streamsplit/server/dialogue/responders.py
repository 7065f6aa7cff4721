"""Who answers: an echo, an announcer of what was heard, and hooks for one's own assistant."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import ParamSpec, Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.resample import resample
from streamsplit.errors import AudioError, ConfigError
from streamsplit.server.dialogue.question import RATE_HZ, Coded, Question
from streamsplit.server.dialogue.settings import DialogueSettings

Floats = NDArray[np.float32]
P = ParamSpec("P")
T = TypeVar("T")
Reply: TypeAlias = "Floats | str | Coded"
"""Sound [n] at 16 kHz, text, or frames of the question as they came."""
_PIECE_BYTES = 1_920  # of a command's output: 60 ms
_HTTP_THREADS = 32
_LARGEST_ANSWER = 64 << 20


class Responder(Protocol):
    """Answers questions; an error that it raises is told to the device, and ends the answer."""

    def respond(self, question: Question) -> AsyncIterator[Reply]:
        """The answer, piece by piece; it may begin while the question is still being asked."""


class Echo:
    """Says what it hears, as it came: no decoding, no delay."""

    async def respond(self, question: Question) -> AsyncIterator[Reply]:
        """The question's own frames."""
        async for coded in question.pieces():
            yield coded


class Announcer:
    """Names the nearest labelled sound: text, and spoken by espeak-ng where that is installed, else as tones."""

    async def respond(self, question: Question) -> AsyncIterator[Reply]:
        """One sentence."""
        named = await question.named()
        if not named.windows:
            said = "I heard nothing."
        elif named.label:
            said = f"I heard {named.label}, {round(100 * named.confidence)} percent."
        else:
            said = "I know no names of sounds yet."
        yield said
        yield await speak(said)


class Command:
    """Runs a command for each question: raw 16-bit sound at 16 kHz on its input as it comes, and on its output."""

    def __init__(self, words: tuple[str, ...]) -> None:
        """Raises ConfigError where there is no such command."""
        if shutil.which(words[0]) is None:
            raise ConfigError(f"'dialogue.command': got '{words[0]}', expected a command that is installed")
        self._words = words

    async def respond(self, question: Question) -> AsyncIterator[Reply]:
        """What the command says while it runs; it is killed when nobody listens any more."""
        process = await asyncio.create_subprocess_exec(
            *self._words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        feeding = asyncio.create_task(_feed(process.stdin, question))
        errors = asyncio.create_task(_tail(process.stderr))
        try:
            rest = b""
            while data := await process.stdout.read(_PIECE_BYTES):
                data = rest + data
                rest = data[len(data) - len(data) % 2 :]
                yield np.frombuffer(data[: len(data) - len(rest)], "<i2").astype(np.float32) / 32_768.0
            code = await process.wait()
            if code:
                said = (await errors).decode(errors="replace").strip()[:200]
                raise AudioError(f"the command ended with code {code}: {said or 'it said nothing'}")
        finally:
            feeding.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await asyncio.gather(feeding, errors, return_exceptions=True)


class Http:
    """Posts each question as a WAV to a URL; the answer is a WAV (16-bit or float) or text. A device's questions are
    posted in their order, without waiting for answers."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Raises ConfigError for a URL that is none."""
        self._url, self._timeout_s = urlsplit(url), timeout_s
        try:
            good = bool(self._url.hostname) and (self._url.port or 0) >= 0
        except ValueError:  # a port that is no number, or too large
            good = False
        if not good:
            raise ConfigError(f"'dialogue.url': got '{url}', expected http://host[:port]/path")
        self._threads = ThreadPoolExecutor(
            _HTTP_THREADS, thread_name_prefix="hook"
        )  # a slow hook keeps no other waiting
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by device

    async def respond(self, question: Question) -> AsyncIterator[Reply]:
        """One request."""
        sound = await question.whole()
        turn = self._turns.get(question.device)
        if turn is None:
            turn = self._turns[question.device] = asyncio.Lock()
        async with turn:
            connection = await self._in_thread(self._post, sound, question.device)
        kind, data = await self._in_thread(self._answer, connection)
        if kind.startswith("text/"):
            yield data.decode(errors="replace")
        else:
            yield await asyncio.to_thread(_samples, data)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def _post(self, sound: Floats, device: str) -> http.client.HTTPConnection:
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        try:
            connection.request("POST", path, _wav(sound), {"Content-Type": "audio/wav", "X-Device": device})
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise self._failed(error) from error
        return connection

    def _answer(self, connection: http.client.HTTPConnection) -> tuple[str, bytes]:
        with contextlib.closing(connection):
            try:
                answer = connection.getresponse()
                data = answer.read(_LARGEST_ANSWER)
            except (http.client.HTTPException, OSError) as error:
                raise self._failed(error) from error
            if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
                raise self._failed(f"got status {answer.status} {answer.reason}, expected 200")
            return answer.headers.get_content_type(), data

    def _failed(self, why: object) -> AudioError:
        return AudioError(f"{self._url.geturl()}: {why}")


def make_responder(settings: DialogueSettings) -> Responder | None:
    """The settings' responder, None without one; raises ConfigError."""
    if settings.responder == "command":
        return Command(settings.command)
    if settings.responder == "http":
        return Http(settings.url, settings.answer_s)
    known: dict[str, type[Echo] | type[Announcer]] = {"echo": Echo, "announce": Announcer}
    return known[settings.responder]() if settings.responder else None


async def speak(text: str) -> Floats:
    """A sentence as sound [n] at 16 kHz: espeak-ng's, or a tone for each of its words."""
    program = shutil.which("espeak-ng")
    if program is None:
        return word_tones(len(text.split()))
    process = await asyncio.create_subprocess_exec(
        program, "--stdout", "--", text, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    data, _ = await process.communicate()
    if process.returncode:
        raise AudioError(f"espeak-ng ended with code {process.returncode}")
    return await asyncio.to_thread(_samples, data)


def word_tones(count: int) -> Floats:
    """So many short tones [n], rising."""
    time_s = np.arange(round(0.1 * RATE_HZ)) / RATE_HZ
    fade = np.minimum(1.0, np.minimum(time_s, 0.1 - time_s) / 0.015)
    pause = np.zeros(round(0.05 * RATE_HZ))
    parts = []
    for place in range(count):
        parts += [0.2 * fade * np.sin(2 * np.pi * (440.0 + 40.0 * (place % 8)) * time_s), pause]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


async def _tail(stream: asyncio.StreamReader) -> bytes:
    """The end of what is written; all of it is taken, or the writer would stand still."""
    tail = b""
    while data := await stream.read(4_096):
        tail = (tail + data)[-4_096:]
    return tail


async def _feed(stdin: asyncio.StreamWriter, question: Question) -> None:
    try:
        async for samples in question.sound():
            stdin.write(np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes())
            await stdin.drain()
        stdin.close()
    except (BrokenPipeError, ConnectionResetError):  # it has heard enough
        return


def _wav(samples: Floats) -> bytes:
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, samples, RATE_HZ, subtype="PCM_16", format="WAV")
    return held.getvalue()


def _samples(data: bytes) -> Floats:
    import soundfile

    try:
        samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"the answer is no sound that can be read ({error})") from error
    return np.asarray(resample(samples.mean(1), rate_hz, RATE_HZ), np.float32)
