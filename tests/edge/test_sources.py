"""Sources: what they give, when they give it, and what they say when they cannot."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import LABELS, Soundscape
from streamsplit.edge.blocks import AudioBlock, Pacer
from streamsplit.edge.sources import find_clips, open_source
from streamsplit.edge.speaker import open_sink
from streamsplit.errors import AudioError, DriverError, MissingExtraError


def tone(seconds: float, rate_hz: int = 16_000, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2.0 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def joined(blocks: list[AudioBlock]) -> np.ndarray:
    return np.concatenate([block.samples for block in blocks])


def check_times(blocks: list[AudioBlock]) -> None:
    position = 0
    for block in blocks:
        assert block.start_ms == position / 16
        assert block.samples.dtype == np.float32 and block.samples.ndim == 1 and len(block.samples)
        position += len(block.samples)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "sounds"
    for label, hz in (("low", 200.0), ("high", 2_000.0)):
        (root / label).mkdir(parents=True)
        for number, rate_hz in enumerate((16_000, 44_100, 8_000)):
            soundfile.write(root / label / f"{label}{number}.wav", tone(0.35, rate_hz, hz), rate_hz)
    (root / "notes.txt").write_text("not audio")
    return root


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(pacer: Pacer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the pacer's waits move the fake clock; returns the list that records them."""
    waits: list[float] = []

    def wait(delay: float) -> bool:
        waits.append(delay)
        clock.now += delay
        return False

    monkeypatch.setattr(pacer._closed, "wait", wait)
    return waits


def test_pacing_follows_the_stream_time_at_the_speed_asked_for(monkeypatch: pytest.MonkeyPatch):
    for speed, seconds in ((1.0, 1.0), (4.0, 0.25)):
        clock = FakeClock()
        pacer = Pacer(speed, clock)
        waits = paced(pacer, clock, monkeypatch)
        for end_ms in range(100, 1_001, 100):
            assert pacer.wait(float(end_ms))
        assert sum(waits) == pytest.approx(seconds) and len(waits) == 10


def test_time_lost_in_the_consumer_is_caught_up(monkeypatch: pytest.MonkeyPatch):
    clock = FakeClock()
    pacer = Pacer(1.0, clock)
    waits = paced(pacer, clock, monkeypatch)
    pacer.wait(100.0)
    clock.now += 0.25
    for end_ms in (200.0, 300.0, 400.0):
        pacer.wait(end_ms)
    assert waits == [pytest.approx(0.1), pytest.approx(0.05)]


def test_speed_0_never_waits_and_a_closed_pacer_ends_at_once(monkeypatch: pytest.MonkeyPatch):
    clock = FakeClock()
    pacer = Pacer(0.0, clock)
    waits = paced(pacer, clock, monkeypatch)
    assert pacer.wait(1e9) and waits == []
    slow = Pacer(1e-6)
    threading.Timer(0.02, slow.close).start()
    assert not slow.wait(1_000.0)  # would take eleven days


@pytest.mark.parametrize("speed", [-1.0, float("nan"), float("inf")])
def test_impossible_speeds_are_refused(speed: float):
    with pytest.raises(AudioError, match="speed"):
        open_source("synthetic:1", speed=speed)


def test_a_synthetic_source_gives_its_seconds_with_labels_and_repeats_by_seed():
    blocks = list(open_source("synthetic:5.05", speed=0, seed=3))
    check_times(blocks)
    assert len(joined(blocks)) == 5.05 * 16_000
    np.testing.assert_array_equal(joined(blocks), Soundscape(3).read(80_800))
    assert {block.label for block in blocks} <= {*LABELS, None} and any(block.label for block in blocks)
    assert {block.clip for block in blocks} == {None}
    other = list(open_source("synthetic:5.05", speed=0, seed=4))
    assert not np.array_equal(joined(blocks), joined(other))


def test_an_endless_source_ends_when_it_is_closed():
    source = open_source("synthetic", speed=0)
    for number, _ in enumerate(source):
        if number == 30:
            source.close()
    assert number == 30


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_a_file_gives_its_samples_at_16_khz(tmp_path: Path, rate_hz: int):
    path = tmp_path / "tone.wav"
    stereo = np.repeat(tone(1.23, rate_hz)[:, None], 2, axis=1)
    soundfile.write(path, stereo, rate_hz)
    source = open_source(str(path), speed=0, block_ms=50)
    blocks = list(source)
    check_times(blocks)
    np.testing.assert_array_equal(joined(blocks), read_audio(path))
    assert {(block.label, block.clip) for block in blocks} == {(None, "tone.wav")}
    assert len(blocks[0].samples) == 800
    assert source.info.kind == "file" and not source.info.live


def test_a_looped_file_names_every_round_differently(tmp_path: Path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.25), 16_000)
    source, clips = open_source(str(path), speed=0, loop=True), []
    blocks = []
    for block in source:
        blocks.append(block)
        clips.append(block.clip)
        if len(clips) == 9:
            source.close()
    assert clips == ["tone.wav"] * 3 + ["tone.wav#2"] * 3 + ["tone.wav#3"] * 3
    check_times(blocks)


def test_a_folder_gives_every_clip_once_with_its_label_in_an_order_of_the_seed(folder: Path):
    orders = []
    for seed in (0, 0, 1):
        blocks = list(open_source(str(folder), speed=0, seed=seed))
        check_times(blocks)
        order = list(dict.fromkeys((block.clip, block.label) for block in blocks))
        assert sorted(order) == sorted((f"{label}{n}.wav", label) for label in ("low", "high") for n in range(3))
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]
    assert open_source(str(folder)).info.labels == ("high", "low")


def test_a_flat_folder_has_no_labels(folder: Path):
    assert {clip.label for clip in find_clips(folder / "low")} == {None}


def test_an_unreadable_file_in_a_folder_is_left_out_and_said(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "low" / "broken.wav").write_bytes(b"no audio")
    source = open_source(str(folder), speed=0)
    assert len({block.clip for block in source}) == 6
    assert "broken.wav" in caplog.text
    assert len(source.unreadable) == 1


def test_a_folder_of_unreadable_files_is_an_error_even_when_looped(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match="none of 1 files"):
        list(open_source(str(tmp_path), speed=0, loop=True))


def test_an_unreadable_single_file_is_an_error(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"a\.wav"):
        list(open_source(str(tmp_path / "a.wav"), speed=0))


def test_what_does_not_exist_is_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for spec, words in (
        (str(tmp_path / "nothing.wav"), "no such file"),
        (str(tmp_path / "empty"), "no audio files"),
        ("synthetic:soon", "SECONDS"),
        ("synthetic:-3", "SECONDS"),
        ("ftp://example.org/a.wav", "expected a path"),
    ):
        with pytest.raises(AudioError, match=words):
            open_source(spec)
    with pytest.raises(AudioError, match="blocks"):
        open_source("synthetic", block_ms=0.0)


# --- URLs


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server in a thread that serves the folder returned."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("name", "rate_hz"), [("tone.flac", 16_000), ("tone.wav", 44_100), ("tone.ogg", 48_000)])
def test_a_url_gives_what_the_file_gives(web: tuple[str, Path], name: str, rate_hz: int):
    pytest.importorskip("av")
    url, root = web
    soundfile.write(root / name, np.repeat(tone(1.5, rate_hz)[:, None], 2, axis=1), rate_hz)
    source = open_source(f"{url}/{name}", speed=0)
    blocks = list(source)
    check_times(blocks)
    expected = read_audio(root / name)
    assert abs(len(joined(blocks)) - len(expected)) < 1_000
    shared = min(len(expected), len(joined(blocks))) - 400
    np.testing.assert_allclose(joined(blocks)[:shared], expected[:shared], atol=0.01)
    assert source.info.kind == "url" and not source.info.live


def test_a_url_that_is_not_there_or_not_audio_is_an_error_that_names_it(web: tuple[str, Path]):
    pytest.importorskip("av")
    url, root = web
    (root / "page.html").write_text("<html>no audio</html>" * 50)
    for name in ("missing.wav", "page.html"):
        with pytest.raises(AudioError, match=f"{url}/{name}"):
            list(open_source(f"{url}/{name}", speed=0))
    with pytest.raises(AudioError, match=r"rtsp://127\.0\.0\.1:1/"):
        list(open_source("rtsp://127.0.0.1:1/nobody"))


def test_a_closed_url_source_ends(web: tuple[str, Path]):
    pytest.importorskip("av")
    url, root = web
    soundfile.write(root / "tone.wav", tone(20.0), 16_000)
    source = open_source(f"{url}/tone.wav", speed=0)
    for number, _ in enumerate(source):
        if number == 5:
            source.close()
    assert number == 5


def test_without_pyav_a_url_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[media\]'"):
        list(open_source("http://127.0.0.1:1/a.wav"))


# --- microphone, with a stand-in for PortAudio


class FakePortAudio(types.ModuleType):
    """Records a ramp in its own rate as soon as it is started."""

    class PortAudioError(Exception):
        pass

    def __init__(self, own_rate_hz: float = 48_000.0, takes_16_khz: bool = True, seconds: float = 1.0) -> None:
        super().__init__("sounddevice")
        self.own_rate_hz, self.takes_16_khz, self.seconds = own_rate_hz, takes_16_khz, seconds
        self.opened = self.closed = self.stopped = self.looks = 0
        self.held = threading.Event()  # cleared: streams never end
        self.held.set()
        self._initialized = 1
        self._exit_handler, self._libname = lambda: None, None

    def query_devices(self, device: object, kind: str) -> dict[str, object]:
        if device not in (None, 3, "usb"):
            raise ValueError(f"No input device matching {device!r}")
        return {"name": "Fake microphone", "default_samplerate": self.own_rate_hz}

    def _terminate(self) -> None:
        assert self.opened == self.closed  # it would close them
        self._initialized -= 1

    def _initialize(self) -> None:
        self._initialized += 1
        self.looks += 1

    def InputStream(self, *, samplerate, blocksize, device, channels, dtype, callback):
        if samplerate == 16_000 and not self.takes_16_khz:
            raise self.PortAudioError("Invalid sample rate")
        library = self
        library.opened += 1

        class Stream:
            active = True

            def start(self) -> None:
                audio = tone(library.seconds, int(samplerate))
                buffer = np.zeros((blocksize, 1), np.float32)  # PortAudio reuses its buffer too
                for at in range(0, len(audio) - blocksize + 1, blocksize):
                    buffer[:, 0] = audio[at : at + blocksize]
                    callback(buffer, blocksize, None, None)
                buffer[:] = 9.0
                self.active = False

            def stop(self) -> None:
                library.held.wait()
                library.stopped += 1

            def close(self) -> None:
                assert library.stopped or self.active  # one that runs is never closed
                library.closed += 1

        return Stream()


@pytest.mark.parametrize("takes_16_khz", [True, False])
@pytest.mark.parametrize("spec", ["mic", "mic:3", "mic:usb"])
def test_a_microphone_gives_mono_at_16_khz_whatever_its_own_rate(monkeypatch, spec: str, takes_16_khz: bool):
    library = FakePortAudio(takes_16_khz=takes_16_khz)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    source = open_source(spec)
    assert source.info == ("microphone", "Fake microphone", True, ())
    blocks = []
    with pytest.raises(AudioError, match="stopped recording"):
        for block in source:
            blocks.append(block)
    check_times(blocks)
    heard = joined(blocks)
    assert len(heard) > 15_500
    np.testing.assert_allclose(heard[500:15_000], tone(1.0)[500:15_000], atol=0.01)
    assert library.closed


def test_a_consumer_that_falls_behind_keeps_the_newest_ten_seconds(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio(seconds=30.0))
    blocks = []
    with pytest.raises(AudioError):
        for block in open_source("mic"):
            blocks.append(block)
    assert "200 blocks lost" in caplog.text
    assert [block.start_ms for block in blocks[:3]] == [0.0, 20_000.0, 20_100.0]  # a faded block, then after the gap
    heard = joined(blocks[1:])
    assert len(heard) == 160_000 and np.array_equal(heard, tone(30.0)[320_000:])


def test_closing_a_microphone_ends_it_and_gives_the_device_back(monkeypatch):
    library = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    source = open_source("mic")
    for number, _ in enumerate(source):
        if number == 2:
            source.close()
    assert number == 2 and library.closed


def test_an_unplugged_microphone_is_looked_for_anew_and_its_streams_are_ended(monkeypatch):
    library = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    threads, source, blocks = threading.active_count(), open_source("mic", retry_s=0.001), []
    for block in source:
        blocks.append(block)
        if len(blocks) == 50:
            source.close()
    assert library.opened == library.closed == 5 and library.looks == 4 and threading.active_count() == threads
    assert [block.outage for block in blocks] == [False] * 10 + ([True] + [False] * 9) * 4
    starts = [block.start_ms for block in blocks]
    assert starts == sorted(starts) and source.outages.figures["microphone_outages"] == 4


def test_streams_that_a_driver_does_not_let_go_of_are_few_and_then_the_run_ends(monkeypatch, caplog):
    library = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    monkeypatch.setattr("streamsplit.edge.portaudio._END_S", 0.01)
    library.held.clear()
    threads = threading.active_count()
    with pytest.raises(DriverError, match="does not let go of 3 streams"):
        list(open_source("mic", retry_s=0.001))
    assert library.opened == 3 and library.looks == 0 and caplog.text.count("it is left behind") == 3
    library.held.set()
    while threading.active_count() > threads:
        threading.Event().wait(0.001)
    assert library.closed == 3
    source = open_source("mic")  # and all is well again
    source.close()


class Loudspeakers:
    """Two that fail after they were looked at twice, one that cannot be opened, and one that stays."""

    def __init__(self, library: FakePortAudio) -> None:
        self.library, self.left = library, [2, 2, None, 10**9]

    def __call__(self, *, samplerate, blocksize, device, channels, dtype, callback):
        left = self.left.pop(0)
        if left is None:
            raise self.library.PortAudioError("Device unavailable")
        library = self.library
        library.opened += 1

        class Stream:
            looked = 0

            @property
            def active(self) -> bool:
                self.looked += 1
                return self.looked <= left

            def start(self) -> None:
                pass

            def stop(self) -> None:
                pass

            def close(self) -> None:
                library.closed += 1

        return Stream()


def test_a_lost_loudspeaker_is_opened_again_and_nothing_is_pulled_meanwhile(monkeypatch):
    library, pulled = FakePortAudio(), []
    library.OutputStream = Loudspeakers(library)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    monkeypatch.setattr("streamsplit.edge.speaker._LOOK_S", 0.001)
    sink, told, stayed = open_sink("speaker:usb", retry_s=0.001), [], threading.Event()
    pulls_at = []

    def changed(change) -> None:
        told.append(bool(change.reason))
        pulls_at.append(len(pulled))
        if told == [True, False, True, False]:
            stayed.set()

    def pull(now_ms: float) -> np.ndarray:
        pulled.append(now_ms)
        return np.zeros(160, np.float32)

    sink.outages.watch(changed)
    sink.start(pull, 160)
    assert stayed.wait(20.0)
    sink.close()
    assert told == [True, False, True, False] and pulls_at == [4, 4, 8, 8]  # 40 ms ahead each time
    assert library.opened == library.closed == 3 and library.looks == 3 and sink.error is None

    library.OutputStream = Loudspeakers(library)
    sink = open_sink("speaker:usb")  # never again
    sink.start(pull, 160)
    sink._thread.join(20.0)
    assert "loudspeaker: the device stopped playing" in str(sink.error) and library.opened == library.closed == 4


def test_a_microphone_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio())
    with pytest.raises(AudioError, match="no input device 'webcam'"):
        open_source("mic:webcam")


def test_without_sounddevice_or_portaudio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[mic\]'"):
        open_source("mic")

    class NoPortAudio:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [NoPortAudio(), *sys.meta_path])
    with pytest.raises(AudioError, match="apt-get install libportaudio2"):
        open_source("mic")
