"""The hook over HTTP: a device's questions are posted in order, whatever the answers take; what fails is one line."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile

from streamsplit.errors import AudioError, ConfigError
from streamsplit.server.dialogue.question import Named, Question
from streamsplit.server.dialogue.responders import Http
from streamsplit.wire.dialogue import Kind, Utterance


class Assistant:
    """Counts the samples of each WAV; answers only when all that are awaited have been posted."""

    def __init__(self, awaited: int) -> None:
        accepted: list[int] = []  # ports, in the order in which connections came
        samples: dict[int, int] = {}
        together = threading.Barrier(awaited)
        self._accepted, self._samples = accepted, samples

        class Server(ThreadingHTTPServer):
            def verify_request(self, request: Any, client_address: Any) -> bool:
                accepted.append(client_address[1])
                return True

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                samples[self.client_address[1]] = len(soundfile.read(io.BytesIO(data))[0])
                together.wait(20.0)
                body = b"heard"
                self.send_response(500 if self.path == "/broken" else 200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quietly."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def posted(self) -> list[int]:
        """Samples of each question, in the order in which they came."""
        return [self._samples[port] for port in self._accepted]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def assistant(request: pytest.FixtureRequest) -> Iterator[Assistant]:
    running = Assistant(request.param)
    yield running
    running.close()


async def unnamed(sound: np.ndarray) -> Named:
    return Named("", 0.0, 0)


def question(frames: int, device: str = "pi") -> Question:
    piece = Utterance(frames, 0, Kind.PCM16, 20.0, (bytes(640),) * frames)
    made = Question(device, piece, unnamed)
    made.add(piece, 0.0)
    made.finish()
    return made


async def answers(responder: Http, *questions: Question) -> list[Any]:
    async def all_of(asked: Question) -> list[Any]:
        return [reply async for reply in responder.respond(asked)]

    return await asyncio.gather(*(all_of(asked) for asked in questions))


@pytest.mark.parametrize("assistant", [4], indirect=True)
def test_questions_are_posted_in_order_without_waiting_for_answers(assistant: Assistant) -> None:
    """The first of them is by far the longest to code; none is answered before all are posted."""
    questions = [question(24), question(3), question(2), question(1)]
    said = asyncio.run(answers(Http(f"{assistant.url}/", 20.0), *questions))
    assert said == [["heard"]] * 4
    assert assistant.posted == [320 * n for n in (24, 3, 2, 1)]


@pytest.mark.parametrize("assistant", [1], indirect=True)
def test_what_the_hook_answers_besides_success_is_told(assistant: Assistant) -> None:
    with pytest.raises(AudioError, match="got status 500"):
        asyncio.run(answers(Http(f"{assistant.url}/broken", 20.0), question(1)))


def test_a_hook_that_nobody_answers_at_is_named() -> None:
    with pytest.raises(AudioError, match=r"^http://127\.0\.0\.1:1/: .*refused"):
        asyncio.run(answers(Http("http://127.0.0.1:1/", 2.0), question(1)))


@pytest.mark.parametrize("url", ["http://", "http://host:port/", "https://host:70000/"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http://host"):
        Http(url, 2.0)
