"""Nine kinds of sound, each drawn with its own random parameters: what a device in a home or an office hears.

Kinds overlap on purpose: rain, traffic, appliances and room tone are coloured noise of overlapping tilt and differ in
how they move; voices and music share their range; typing and footsteps are strikes with other rhythms and bodies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamsplit.audio.waves import (
    RATE_HZ,
    Floats,
    Rng,
    add_at,
    coloured_noise,
    decibels,
    fast_length,
    harmonic_tone,
    noise_burst,
    slow_curve,
    struck,
    swell,
    unit_rms,
)

# First three formants in Hz of ten vowels (Peterson and Barney 1952, means of men, women and children, rounded).
_VOWELS = np.array([
    (300, 2500, 3200), (430, 2200, 2900), (590, 2000, 2800), (780, 1880, 2700), (820, 1230, 2650),
    (620, 920, 2650), (490, 1110, 2500), (340, 960, 2500), (700, 1330, 2640), (520, 1480, 1880),
], np.float64)  # fmt: skip
_SCALES = ((0, 2, 4, 7, 9), (0, 3, 5, 7, 10), (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))


def conversation(samples: int, rng: Rng) -> Floats:
    """One to three talkers taking turns: voiced syllables with moving formants, consonants, short pauses."""
    signal = np.zeros(samples, np.float32)
    talkers = [_Talker(rng) for _ in range(rng.integers(1, 4))]
    at, turn = -int(rng.uniform(0.0, 0.3) * RATE_HZ), 0
    while at < samples:
        talker = talkers[turn % len(talkers)]
        turn_end = at + int(rng.uniform(0.8, 3.5) * RATE_HZ)
        pitch = rng.uniform(1.0, 1.25)
        while at < min(turn_end, samples):
            at += talker.syllable(signal, at, pitch, rng)
            pitch *= rng.uniform(0.95, 1.02)
        at += int(rng.uniform(0.05, 0.45) * RATE_HZ)
        turn += int(rng.integers(0, 3))
    return signal


class _Talker:
    """A voice: pitch, vocal tract length, pace and level."""

    def __init__(self, rng: Rng) -> None:
        self.f0_hz = float(np.exp(rng.uniform(np.log(85.0), np.log(260.0))))
        self.tract = rng.uniform(0.9, 1.2)
        self.pace = rng.uniform(3.5, 6.5)
        self.tilt = rng.uniform(0.8, 1.6)
        self.level = decibels(rng.uniform(-5.0, 0.0))

    def syllable(self, signal: Floats, at: int, pitch: float, rng: Rng) -> int:
        """Adds a syllable at `at`; returns its length in samples."""
        length = int(RATE_HZ / self.pace * rng.uniform(0.6, 1.4))
        if rng.random() < 0.6:
            burst = noise_burst(
                int(0.09 * RATE_HZ), rng, np.exp(rng.uniform(7.3, 8.8)), 0.6, rng.uniform(0.008, 0.04), 0.004
            )
            add_at(signal, burst, at, self.level * rng.uniform(0.05, 0.3))
            at += int(rng.uniform(0.02, 0.06) * RATE_HZ)
        f0 = self.f0_hz * pitch * np.linspace(rng.uniform(0.95, 1.1), rng.uniform(0.9, 1.05), length)
        start, end = (self._envelope(float(f0[0]), rng) for _ in range(2))
        mix = np.linspace(0.0, 1.0, length, dtype=np.float32)
        amplitudes = start[:, None] * (1.0 - mix) + end[:, None] * mix
        voice = harmonic_tone(f0.astype(np.float32), amplitudes, rng) * swell(length, 0.03, 0.06)
        add_at(signal, unit_rms(voice), at, self.level * rng.uniform(0.5, 1.0))
        return length

    def _envelope(self, f0_hz: float, rng: Rng) -> Floats:
        """Amplitudes of the harmonics under a vowel's formants, up to 5 kHz."""
        hz = f0_hz * np.arange(1, max(2, int(5_000.0 / f0_hz)))
        formants = _VOWELS[rng.integers(len(_VOWELS))] * self.tract
        widths = np.array([90.0, 130.0, 200.0])
        gains = np.array([1.0, 0.6, 0.35])
        envelope = (gains / (1.0 + ((hz[:, None] - formants) / widths) ** 2)).sum(axis=1) + 0.02
        return (envelope * (hz / hz[0]) ** (-0.5 * self.tilt)).astype(np.float32)


def music(samples: int, rng: Rng) -> Floats:
    """A melody in a scale, often with chords, bass and a drum kit, from sung to plucked timbres."""
    signal = np.zeros(samples, np.float32)
    beat = int(60.0 / rng.uniform(65.0, 150.0) * RATE_HZ)
    root_hz = float(np.exp(rng.uniform(np.log(110.0), np.log(330.0))))
    scale = _SCALES[rng.integers(len(_SCALES))]
    melody, bass = _instrument(rng), _instrument(rng)
    chords, drums = rng.random() < 0.5, rng.random() < 0.5
    has_bass = rng.random() < 0.6
    hat = noise_burst(int(0.06 * RATE_HZ), rng, 6_000.0, 0.5, rng.uniform(0.01, 0.03), 0.001)
    kick = struck(int(0.2 * RATE_HZ), *(np.array([v], np.float32) for v in (rng.uniform(50, 80), 0.06, 1.0)))
    degree = int(rng.integers(len(scale)))
    for number, at in enumerate(range(-int(rng.integers(beat)), samples, beat)):
        for half in (0, beat // 2):
            if rng.random() < (0.92 if half == 0 else 0.5):
                degree += int(rng.integers(-2, 3))
                note = _note(root_hz * _step(scale, degree), beat * rng.uniform(0.5, 1.6), melody, rng)
                add_at(signal, note, at + half, rng.uniform(0.6, 1.0))
            if drums and rng.random() < 0.8:
                add_at(signal, hat, at + half, 0.15)
        if chords and number % 2 == 0:
            for third in (0, 2, 4):
                note = _note(root_hz * _step(scale, number // 2 % 4 + third) / 2, 2.0 * beat, bass, rng)
                add_at(signal, note, at, 0.35)
        if has_bass:
            add_at(signal, _note(root_hz * _step(scale, degree) / 4, 1.0 * beat, bass, rng), at, 0.5)
        if drums and number % 2 == 0:
            add_at(signal, kick, at, 1.5)
    return signal


def _instrument(rng: Rng) -> tuple[Floats, float, float, float]:
    """Harmonic amplitudes, attack and decay in s, vibrato depth."""
    numbers = np.arange(1, 11, dtype=np.float64)
    amplitudes = numbers ** -rng.uniform(0.5, 1.8) * rng.uniform(0.3, 1.0, len(numbers))
    return amplitudes.astype(np.float32), rng.uniform(0.004, 0.08), rng.uniform(0.2, 1.5), rng.uniform(0.0, 0.012)


def _step(scale: tuple[int, ...], degree: int) -> float:
    degree = int(np.clip(degree, -len(scale), 2 * len(scale)))
    octave, place = divmod(degree, len(scale))
    return float(2.0 ** (octave + scale[place] / 12.0))


def _note(f0_hz: float, length: float, instrument: tuple[Floats, float, float, float], rng: Rng) -> Floats:
    amplitudes, attack_s, decay_s, vibrato = instrument
    n = max(64, min(int(length), int(1.5 * RATE_HZ)))
    time_s = np.arange(n, dtype=np.float32) / RATE_HZ
    f0 = f0_hz * (1.0 + vibrato * np.sin(2.0 * np.pi * 5.5 * time_s))
    envelope = np.exp(-time_s / decay_s) * swell(n, attack_s, 0.03)
    return np.asarray(unit_rms(harmonic_tone(f0.astype(np.float32), amplitudes, rng)) * envelope, np.float32)


def footsteps(samples: int, rng: Rng) -> Floats:
    """Somebody walks: heel and toe at a steady pace, on wood, carpet or gravel."""
    signal = np.zeros(samples, np.float32)
    period = RATE_HZ / rng.uniform(1.5, 2.7)
    toe = int(rng.uniform(0.06, 0.15) * RATE_HZ)
    modes_hz = np.exp(rng.uniform(np.log(60.0), np.log(400.0), 3)).astype(np.float32)
    decays_s = rng.uniform(0.01, 0.05, 3).astype(np.float32)
    scuff_hz, scuff_decay_s = float(np.exp(rng.uniform(5.8, 8.0))), rng.uniform(0.008, 0.06)
    scuff = decibels(rng.uniform(-18.0, 4.0))
    at = float(-rng.uniform(0.0, period))
    while at < samples:
        for place, gain in ((0, 1.0), (toe, rng.uniform(0.2, 0.8))):
            body = struck(
                2_400, modes_hz * rng.uniform(0.93, 1.07), decays_s, rng.uniform(0.3, 1.0, 3).astype(np.float32)
            )
            noise = noise_burst(2_400, rng, scuff_hz * rng.uniform(0.85, 1.15), 0.7, scuff_decay_s, 0.001)
            add_at(signal, unit_rms(body) + scuff * unit_rms(noise), int(at) + place, gain * rng.uniform(0.7, 1.0))
        at += period * rng.uniform(0.93, 1.07)
    return signal


def typing(samples: int, rng: Rng) -> Floats:
    """Keys in bursts: a click, the board's body, the key's way back; deeper space bars, short pauses."""
    signal = np.zeros(samples, np.float32)
    click_hz, click_decay_s = float(np.exp(rng.uniform(7.3, 8.7))), rng.uniform(0.002, 0.012)
    modes_hz = np.exp(rng.uniform(np.log(250.0), np.log(1_500.0), 2)).astype(np.float32)
    decays_s = rng.uniform(0.006, 0.03, 2).astype(np.float32)
    body = decibels(rng.uniform(-12.0, 6.0))
    gap_s = rng.uniform(0.1, 0.24)
    at, left = -rng.uniform(0.0, 0.2) * RATE_HZ, int(rng.integers(5, 25))
    while at < samples:
        deep = 0.6 if rng.random() < 0.15 else 1.0
        click = noise_burst(1_200, rng, click_hz * deep * rng.uniform(0.8, 1.2), 0.7, click_decay_s, 0.0005)
        board = struck(1_200, modes_hz * deep * rng.uniform(0.9, 1.1), decays_s, np.ones(2, np.float32))
        key = unit_rms(click) + body * unit_rms(board)
        gain = rng.uniform(0.5, 1.0)
        add_at(signal, key, int(at), gain)
        add_at(signal, key, int(at + rng.uniform(0.05, 0.11) * RATE_HZ), gain * rng.uniform(0.15, 0.5))
        at += gap_s * float(np.exp(rng.normal(0.0, 0.45))) * RATE_HZ
        left -= 1
        if left == 0:
            left = int(rng.integers(5, 25))
            at += rng.uniform(0.2, 0.8) * RATE_HZ
    return signal


def appliance(samples: int, rng: Rng) -> Floats:
    """A fan, fridge or vacuum cleaner: mains and motor harmonics in the noise of moving air, nearly steady."""
    air = coloured_noise(samples, rng, rng.uniform(-6.0, -1.5), peaks=_humps(rng, 2))
    mains_hz = 50.0 if rng.random() < 0.5 else 60.0
    tone = np.zeros(samples, np.float32)
    for f0_hz, wobble, count in ((mains_hz, 0.0, 10), (np.exp(rng.uniform(5.0, 6.4)), 0.004, 10)):
        f0 = f0_hz * slow_curve(samples, rng, 1.0, 1.0 - wobble, 1.0 + wobble)
        amplitudes = np.arange(1, count + 1) ** -rng.uniform(0.5, 1.8) * rng.uniform(0.1, 1.0, count)
        tone += unit_rms(harmonic_tone(f0, amplitudes.astype(np.float32), rng)) * np.float32(rng.uniform(0.4, 1.0))
    mixed = air + decibels(rng.uniform(-2.0, 9.0)) * unit_rms(tone)
    return np.asarray(mixed * slow_curve(samples, rng, 0.7, 0.85, 1.0), np.float32)


def traffic(samples: int, rng: Rng) -> Floats:
    """A street: tyre noise of cars that pass, engines that drift in pitch, a distant rumble."""
    signal = 0.3 * coloured_noise(samples, rng, rng.uniform(-8.0, -3.0))
    seconds = samples / RATE_HZ
    time_s = np.arange(samples, dtype=np.float32) / RATE_HZ
    for _ in range(1 + rng.poisson(seconds * rng.uniform(0.2, 0.6))):
        closest_s, width_s = rng.uniform(-1.0, seconds + 1.0), rng.uniform(0.5, 2.0)
        near = 1.0 / (1.0 + ((time_s - closest_s) / width_s) ** 2)
        road = (
            float(np.exp(rng.uniform(np.log(500.0), np.log(1_200.0)))),
            rng.uniform(0.6, 1.0),
            rng.uniform(6.0, 14.0),
        )
        tyres = coloured_noise(samples, rng, rng.uniform(-7.0, -3.0), peaks=(road,))
        speed = 1.0 - 0.05 * np.tanh((time_s - closest_s) / width_s)  # Doppler shift of the engine
        engine_hz = rng.uniform(35.0, 110.0) * speed * slow_curve(samples, rng, 0.5, 0.93, 1.07)
        amplitudes = (np.arange(1, 9) ** -rng.uniform(0.3, 1.3)).astype(np.float32)
        engine = unit_rms(harmonic_tone(engine_hz.astype(np.float32), amplitudes, rng))
        car = near**1.5 * tyres + decibels(rng.uniform(-16.0, -2.0)) * near * engine
        signal += np.asarray(decibels(rng.uniform(-6.0, 6.0)) * car, np.float32)
    return signal


def rain(samples: int, rng: Rng) -> Floats:
    """Rain on a window or a roof: a hiss of far drops, near drops that ring the surface, a dripping gutter."""
    hiss = coloured_noise(samples, rng, rng.uniform(-3.5, 0.5), peaks=_humps(rng, 1))
    hiss *= slow_curve(samples, rng, 1.5, 0.7, 1.0)
    size = fast_length(samples + 1_024)
    near = np.zeros(size // 2 + 1, np.complex64)
    for _ in range(2):  # two surfaces
        impulses = np.zeros(size, np.float32)
        count = rng.poisson(samples / RATE_HZ * np.exp(rng.uniform(np.log(15.0), np.log(250.0))))
        impulses[rng.integers(0, samples, count)] = np.exp(rng.normal(0.0, 0.9, count)) * rng.choice((-1.0, 1.0), count)
        hz = np.exp(rng.uniform(np.log(400.0), np.log(6_000.0), 3)).astype(np.float32)
        kernel = struck(1_024, hz, rng.uniform(0.001, 0.008, 3).astype(np.float32), np.ones(3, np.float32))
        near += np.fft.rfft(impulses) * np.fft.rfft(kernel, size)
    drops = np.fft.irfft(near, size)[:samples].astype(np.float32)
    return np.asarray(hiss + decibels(rng.uniform(-10.0, 6.0)) * unit_rms(drops), np.float32)


def alarm(samples: int, rng: Rng) -> Floats:
    """Beeps, a two-tone horn, a siren or a ringing phone, with pauses between the groups."""
    time_s = np.arange(samples, dtype=np.float32) / RATE_HZ
    base_hz = float(np.exp(rng.uniform(np.log(700.0), np.log(2_800.0))))
    beat_s = rng.uniform(0.15, 0.9)
    place = np.mod(time_s / beat_s + rng.random(), 1.0)
    kind = rng.integers(4)
    if kind == 0:  # beeps
        f0, on = np.full(samples, base_hz), place < rng.uniform(0.3, 0.7)
    elif kind == 1:  # two tones
        f0, on = np.where(place < 0.5, base_hz, base_hz * rng.uniform(1.12, 1.5)), np.ones(samples, bool)
    elif kind == 2:  # siren
        sweep = np.mod(time_s / (4.0 * beat_s), 1.0)
        f0, on = base_hz * (1.0 + rng.uniform(0.3, 1.0) * np.abs(2.0 * sweep - 1.0)), np.ones(samples, bool)
    else:  # telephone: a fast trill in long rings
        trill = np.mod(time_s * rng.uniform(12.0, 25.0), 1.0) < 0.5
        f0, on = np.where(trill, base_hz, base_hz * 1.25), np.mod(time_s / (3.0 * beat_s), 1.0) < 0.65
    amplitudes = np.arange(1, 7) ** -rng.uniform(0.8, 3.0) * rng.uniform(0.2, 1.0, 6)
    gate = np.convolve(on.astype(np.float32), np.hanning(82)[1:-1].astype(np.float32) / 40.5, "same")[:samples]
    group_s = rng.uniform(1.0, 4.0)
    gate *= np.where(np.mod(time_s / group_s, 1.0) < rng.uniform(0.85, 1.0), 1.0, 0.0)
    return np.asarray(harmonic_tone(f0.astype(np.float32), amplitudes.astype(np.float32), rng) * gate, np.float32)


def room_tone(samples: int, rng: Rng) -> Floats:
    """A room in which nothing happens: soft coloured noise, a trace of mains hum, now and then a creak."""
    signal = coloured_noise(samples, rng, rng.uniform(-8.0, -5.0), peaks=_humps(rng, 1))
    signal *= slow_curve(samples, rng, 0.5, 0.9, 1.0)
    amplitudes = (np.arange(1, 7) ** -rng.uniform(0.8, 2.0)).astype(np.float32)
    hum = harmonic_tone(np.full(samples, 50.0, np.float32), amplitudes, rng)
    signal += np.float32(decibels(rng.uniform(-30.0, -12.0))) * unit_rms(hum)
    for _ in range(rng.poisson(samples / RATE_HZ * 0.15)):
        creak = noise_burst(1_600, rng, np.exp(rng.uniform(5.5, 8.3)), 0.5, rng.uniform(0.005, 0.03), 0.002)
        add_at(signal, creak, int(rng.integers(samples)), rng.uniform(1.0, 4.0))
    return signal


def _humps(rng: Rng, most: int) -> list[tuple[float, float, float]]:
    """Up to `most` resonances (Hz, octaves, dB) of the housing, the street or the roof."""
    return [
        (float(np.exp(rng.uniform(np.log(120.0), np.log(5_000.0)))), rng.uniform(0.3, 1.0), rng.uniform(-5.0, 7.0))
        for _ in range(rng.integers(0, most + 1))
    ]


SOUNDS: dict[str, Callable[[int, Rng], Floats]] = {
    "conversation": conversation,
    "music": music,
    "footsteps": footsteps,
    "typing": typing,
    "appliance": appliance,
    "traffic": traffic,
    "alarm": alarm,
    "rain": rain,
    "silence": room_tone,
}
