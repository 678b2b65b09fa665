"""From what was taken down to milliseconds, on a story that was made up."""

from __future__ import annotations

import numpy as np
import pytest

from client.e2e import feel
from client.e2e.report import Row, draw, table, write_csv

pytestmark = pytest.mark.unit
QUANTUM = 0.01


def sound(*spans: tuple[float, float]) -> list[tuple[float, list[int]]]:
    peaks = np.full(1000, 3)
    for begin, end in spans:
        peaks[round(begin / QUANTUM) : round(end / QUANTUM)] = 5000
    return [(at * 0.4, [int(x) for x in peaks[at * 40 : at * 40 + 40]]) for at in range(25)]


def test_words_and_their_answers():
    probe = {
        "mic": sound((1.0, 1.5), (4.0, 4.2), (4.3, 4.5), (7.0, 7.5), (9.0, 9.5)),
        "out": sound((1.8, 3.0), (4.9, 7.55)),
        "pictures": [(i * 0.04, [0 if i * 0.04 < 2.0 else 9] * 4) for i in range(200)],
        "units": [
            {"at": 1.6, "state": "listen", "ms": {}, "gateway": 90.0},
            {"at": 1.75, "state": "speak", "ms": {"think": 50.0, "render": 20.0, "total": 99.0}, "gateway": 80.0},
        ],
    }
    first, second = feel.words(probe, QUANTUM)
    assert (first.sound, first.picture) == (pytest.approx(310, abs=1), pytest.approx(510, abs=1))
    assert (first.model, first.server) == (70.0, 10.0)
    assert (second.sound, second.picture) == (pytest.approx(410, abs=1), None)
    assert feel.longest_silence(*feel.voiced(probe["out"], QUANTUM)) == pytest.approx(1910, abs=1)


@pytest.mark.parametrize("late", [-0.12, 0.0, 0.08])
def test_a_mouth_that_is_late_is_told(late: float):
    """The mouth is one part of the picture; another one does something else."""
    rng = np.random.default_rng(0)
    syllables = np.repeat(rng.random(200) * (rng.random(200) < 0.7), 8)  # of 80 ms
    times, pictures = np.arange(syllables.size) * QUANTUM, np.arange(0, 16, 0.025)
    shown = np.interp(pictures - late, times, np.convolve(syllables, np.full(4, 1 / 4), "same"))
    eyes = rng.integers(0, 9, pictures.size)
    seen = [
        (float(at), [50, int(200 - 90 * mouth), int(eye)]) for at, mouth, eye in zip(pictures, shown, eyes, strict=True)
    ]
    assert feel.lips(seen, times, syllables) == pytest.approx(late * 1e3, abs=20)
    assert np.isnan(feel.lips([(at, [1, 2, 3]) for at, _ in seen], times, syllables))


def test_rows_become_a_table_and_a_picture(tmp_path):
    rows = [Row("webrtc", 80, 0.01, 8, 7, 7, 412.0, 520.0, 450.0, 80, 90, 20, 53, 40, 129, 0.02, -20.0, 1.0)] * 3
    write_csv(rows, tmp_path / "e2e.csv")
    draw(rows, tmp_path / "bars.png")
    assert len((tmp_path / "e2e.csv").read_text().splitlines()) == 4
    assert (tmp_path / "bars.png").stat().st_size > 1000
    where = "80 + 90 + 20 + 53 + 40 + 129"
    assert f"| webrtc | 80 ms | 1% | 412 ms (520) | {where} | 450 ms | -20 ms | 7 of 8, 7 |" in table(rows)
