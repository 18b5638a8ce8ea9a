"""Made-up findings of audits, of images and of text, for the tests of their report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lti.auditing.result import (
    AttackFinding,
    AuditResult,
    DefenseFinding,
    Estimate,
    Example,
    Level,
    Utility,
)

__all__ = ["ATTACKS", "DEFENSES", "WORDS", "estimate", "finding", "png", "result", "with_text"]

ATTACKS = {"LTI": 1.0, "IG": 0.35, "GI-GIP (tv 1e-5)": 0.55, "mine": -0.3}
"""Each attack's share of what the best one recovers."""

# What is recovered, the accuracy left, epsilon.
DEFENSES: dict[str, tuple[dict[str, Any], Level, float, float, float | None]] = {
    "none": ({"use": "none"}, "exposed", 0.83, 0.652, None),
    "sign": ({"use": "sign"}, "exposed", 0.572, 0.631, None),
    "prune-99": ({"use": "prune", "rate": 0.99}, "exposed", 0.499, 0.584, None),
    "gauss-0.1": ({"use": "gauss", "sigma": 0.1}, "partly exposed", 0.156, 0.49, 8.0),
    "gauss-1": ({"use": "gauss", "sigma": 1.0}, "not recovered", 0.012, 0.16, 0.61),
    **{
        f"other-{n}": ({"use": "other", "n": n}, "partly exposed", 0.1 + 0.03 * n, 0.5, 3.0)
        for n in range(5)
    },
}
WORDS = (" the", " team", " played", " its", " home", " games", " near", " a", " river")


def png(seed: int, width: int = 32, height: int = 32) -> bytes:
    """An image with edges and fine detail."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    shade = 40 * (rows > height // 2) + 90 * (columns > width // (2 + seed % 3)) + 20 * (rows % 2)
    pixels = shade[..., None] + rng.integers(0, 100, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def estimate(mean: float, half: float, n: int = 1000) -> Estimate:
    return Estimate(mean, mean - half, mean + half, n)


def finding(name: str) -> DefenseFinding:
    settings, level, most, accuracy, epsilon = DEFENSES[name]
    attacks = []
    for label, part in ATTACKS.items():
        share = most * part
        psnr, mse = estimate(12 + 20 * share, 0.31), estimate(0.06 - share / 20, 1e-3)
        recovered = estimate(share, 0.0153)
        worst = estimate(share + 0.25 * (1 - share), 0.03, 10)
        attacks.append(
            AttackFinding(label, {"psnr": psnr, "mse": mse}, recovered, worst, 0.021, 0.087)
        )
    seed = len(name)
    return DefenseFinding(
        defense=name,
        settings=settings,
        source="Somebody 2020, section 3",
        level=level,
        verdict=f"LTI recovers {100 * most:.1f} % [1.0, 2.0] of the average victim.",
        best="LTI",
        attacks=tuple(attacks),
        examples=tuple(Example(n, png(n), png(seed + n), most) for n in (3, 5, 8)),
        worst=(Example(17, png(17), png(seed + 17), most + 0.1),),
        utility=Utility(
            estimate(accuracy, 0.011), 0.652, 60, epsilon, None if epsilon is None else 1e-5
        ),
    )


def result(names: Sequence[str] = tuple(DEFENSES)[:5], **changes: Any) -> AuditResult:
    """An audit of images, under the defenses named."""
    findings = tuple(map(finding, names))
    audit = AuditResult(
        title="CIFAR10 on a LeNet",
        modality="image",
        metric="psnr",
        floor={"psnr": 12.0, "mse": 0.06},
        ceiling={"psnr": float("inf"), "mse": 0.0},
        defenses=findings,
        facts={"model": "LeNet", "data": "CIFAR10", "victims": "1000", "batch size": "1"},
        settings={"seed": 0, "defenses": {d.defense: dict(d.settings) for d in findings}},
        digests={"results/observations.none.safetensors": "0123456789abcdef"},
        versions={"lti": "0.1.0", "python": "3.11"},
        frame=pd.DataFrame(),
    )
    return replace(audit, **changes)


def with_text(audit: AuditResult) -> AuditResult:
    """The same of sentences: of every victim two words come back wrong."""
    wrong = (" rope", *WORDS[1:-1], "weights")
    examples = tuple(Example(n, WORDS, wrong, 7 / 9) for n in (3, 5))
    findings = (replace(d, examples=examples, worst=examples[:1]) for d in audit.defenses)
    return replace(audit, modality="text", defenses=tuple(findings))
