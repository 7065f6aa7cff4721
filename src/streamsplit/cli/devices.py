"""`streamsplit devices`: the microphones and loudspeakers of this machine."""

from __future__ import annotations

import argparse

from streamsplit.cli.console import print_json

_KNOWN = ("respeaker", "seeed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--json", action="store_true", help="print them as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Lists what PortAudio finds; a number, or any part of a name, picks one as mic:X and speaker:X."""
    from streamsplit.edge.portaudio import portaudio

    found = [
        {
            "number": number, "name": str(device["name"]), "inputs": int(device["max_input_channels"]),
            "outputs": int(device["max_output_channels"]), "rate_hz": round(float(device["default_samplerate"])),
        }
        for number, device in enumerate(portaudio().query_devices())
    ]  # fmt: skip
    if args.json:
        print_json({"devices": found})
        return 0
    for device in found:
        mark = "*" if any(name in str(device["name"]).lower() for name in _KNOWN) else " "
        print(
            f"{mark}{device['number']:>3}  {device['name']}  ({device['inputs']} in, {device['outputs']} out, "
            f"{device['rate_hz']} Hz)"
        )
    if not found:
        print("no audio devices found")
    return 0
