"""The encoder in C: built with every warning an error, and the same codes as the Python reference, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import render_scene
from streamsplit.codec.tinystream.integer import IntegerEncoder
from streamsplit.codec.tinystream.integerise import activation_peaks, integerise
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.settings import SIZES
from streamsplit.export.c_model import c_files, golden_samples, score_bits, sizes
from streamsplit.weights.codec_file import read_codec

FIRMWARE = Path(__file__).parents[2] / "firmware"
CODECS = {
    "tiny_mel": SIZES["tiny_mel"],
    "packaged": None,
    "ultra_tiny": SIZES["ultra_tiny"],
    "odd": SIZES["tiny_mel"].replace(
        strides=(96, 3), bands=21, D=13, codebook_dim=5, codebook_size=8, num_quantizers=2
    ),
}
_ARM = ("arm-none-eabi-gcc", "qemu-system-arm")
NEEDED = {
    "test": ("gcc",), "test-m4": _ARM, "test-m55": _ARM, "test-aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "test-riscv": ("riscv64-unknown-elf-gcc", "qemu-system-riscv32"), "test-wasm": ("clang", "wasm-ld", "node"),
}  # fmt: skip
PACKAGES = "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm gcc-aarch64-linux-gnu qemu-user "
PACKAGES += "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc clang lld nodejs"


def encoder(name: str) -> IntegerEncoder:
    settings = CODECS[name]
    if settings is None:
        return read_codec("tiny_mel").integer_encoder()
    model = TinyStream.from_settings(settings, seed=2).train()
    audio = torch.from_numpy(render_scene("conversation", 2.0, np.random.default_rng(0)).clip(-1, 1))[None, None]
    with torch.no_grad():
        model(audio)
    return integerise(model.eval(), activation_peaks(model, audio))


@pytest.mark.parametrize("target", NEEDED)
@pytest.mark.parametrize("name", CODECS)
def test_the_c_runtime_gives_the_references_codes(name: str, target: str, tmp_path: Path) -> None:
    missing = [tool for tool in ("make", *NEEDED[target]) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (of Debian: {PACKAGES})")
    made = encoder(name)
    for file, text in c_files(made).items():
        (tmp_path / file).write_text(text)
    done = subprocess.run(
        ["make", "-C", FIRMWARE, target, f"MODEL={tmp_path}", f"BUILD={tmp_path}/build"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    frames = len(golden_samples(made.hop)) // made.hop
    assert f"ok: {frames} frames" in done.stdout + done.stderr  # qemu-system-riscv32 prints to the latter


def test_a_wrong_code_fails_the_golden_test(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc or make not installed")
    files = c_files(encoder("odd"))
    golden = files["tinystream_golden.h"]
    place = golden.index("golden_indices[] = {") + len("golden_indices[] = {\n    ")
    number, rest = golden[place:].split(",", 1)
    files["tinystream_golden.h"] = f"{golden[:place]}{(int(number) + 1) % 8},{rest}"
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    command = ["make", "-C", FIRMWARE, "test", f"MODEL={tmp_path}", f"BUILD={tmp_path}/build"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "frame 0, quantizer 0: got" in done.stdout


def test_the_mel_codec_fits_its_budget() -> None:
    made = encoder("tiny_mel")
    size = sizes(made)
    assert made.stored_bytes <= 70 * 1024
    assert size.ram_bytes(made) <= 64 * 1024
    assert size.macs == 2 * (64 * 60 + 7 * 60 + 2 * 3600) + 4 * 60 + 3600 + 7 * 60 + 2 * 3600 + 3 * 60 * 16
    assert size.search_macs == 5 * 512 * 16


def test_scores_are_narrow_where_the_largest_residual_allows() -> None:
    narrow, wide = encoder("tiny_mel"), encoder("ultra_tiny")
    assert score_bits(narrow) == 32
    assert score_bits(wide) == 32
    assert score_bits(wide._replace(codebooks=np.zeros((4, 8, 192), np.int8), codebook_shifts=(9,) * 4)) == 64


def test_the_same_encoder_gives_the_same_files() -> None:
    assert c_files(encoder("odd")) == c_files(encoder("odd"))
