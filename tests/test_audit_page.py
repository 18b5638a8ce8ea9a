"""An audit's report: what the page says, hides and never does, and how a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_results import ATTACKS, DEFENSES, WORDS, finding, png, result, with_text
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from lti.auditing.result import AuditResult, Estimate, Example, Level
from lti.auditing.verdict import LEVELS
from lti.errors import LTIError
from lti.report.audit_labels import LINE_HEIGHT, box_around, overlap, text_width
from lti.report.audit_page import audit_page, write_audit_page
from lti.report.audit_plot import Point, frontier, lay_out
from lti.report.audit_text import answer, number, percent

TEN = tuple(DEFENSES)
HOSTILE = "<script>alert(1)</script>\"'></pre></title></style><!-- \u202e{{ 7*7 }} &amp; \x00"
VOID = {"meta", "link", "img"}  # elements without an end


class Page(HTMLParser):
    """A page taken apart: elements in order, with their attributes and the text inside.

    Raises an AssertionError where an element is not closed.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}, []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for position in self._open:
            self.elements[position][2].append(data)

    def attributes(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes, _ in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]

    def texts(self, tag: str, kind: str | None = None) -> list[str]:
        return [
            " ".join("".join(text).split())
            for name, attributes, text in self.elements
            if name == tag and (kind is None or kind in attributes.get("class", "").split())
        ]

    def rows(self, kind: str) -> list[list[str]]:
        """The cells of all tables of a class, row by row."""
        found: list[list[str]] = []
        inside = False
        for name, attributes, text in self.elements:
            if name == "table":
                inside = attributes.get("class") == kind
            elif inside and name == "tr":
                found.append([])
            elif inside and name in ("th", "td"):
                found[-1].append(" ".join("".join(text).split()))
        return found


def pictures(html: str) -> list[bytes]:
    sources = [attributes["src"] for attributes in Page(html).attributes("img")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def signed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", "−")


def shares(estimate: Estimate) -> str:
    low, high = (signed(100 * end, 1) for end in (estimate.low, estimate.high))
    return f"{signed(100 * estimate.mean, 1)} % [{low}, {high}]"


def findings_of(levels: str) -> AuditResult:
    """Of levels as initials, with a leading ``-`` for no defense."""
    full: dict[str, Level] = {"e": "exposed", "p": "partly exposed", "n": "not recovered"}
    found = [
        replace(finding("sign"), defense=f"d{position}", level=full[initial])
        for position, initial in enumerate(levels.lstrip("-"))
    ]
    if levels.startswith("-"):
        found[0] = replace(found[0], defense="none", settings={"use": "none"})
    return result(defenses=tuple(found))


# What the page says.


@pytest.mark.parametrize(
    ("levels", "first", "second"),
    [
        ("-eepn", "1 of 3 defenses leaves victims exposed.", "1 leaves them partly exposed. With"),
        ("eepp", "2 of 4 defenses leave victims exposed.", "2 leave them partly exposed."),
        ("eee", "All 3 defenses leave victims exposed.", ""),
        ("ee", "Both defenses leave victims exposed.", ""),
        ("pn", "1 of 2 defenses leaves victims partly exposed.", "None leaves them exposed."),
        ("pp", "Both defenses leave victims partly exposed.", "None leaves them exposed."),
        ("nn", "None of 2 defenses leaves victims exposed.", "That is what these attacks could do"),
        ("n", "With d0, victims were not recovered.", ""),
        ("-np", "d1 leaves victims partly exposed.", "Even without a defense, victims were not"),
        ("-e", "Without a defense, victims are exposed.", ""),
    ],
)
def test_answer(levels: str, first: str, second: str) -> None:
    audit = findings_of(levels)
    told = answer(audit.defenses)
    assert told[0] == first
    assert told[1].startswith(second) and bool(told[1]) == bool(second)
    page = Page(audit_page(audit, examples="omit"))
    assert page.texts("p", "first") == [first]
    # The sign beside it is that of the worst defense, not of none at all.
    judged = audit.defenses[levels.startswith("-") and len(audit.defenses) > 1 :]
    worst = min((d.level for d in judged), key=["exposed", "partly exposed", "not recovered"].index)
    assert page.attributes("div", **{"class": f"answer {worst.replace(' ', '-')}"})


def test_numbers_are_those_of_the_result() -> None:
    audit = result(TEN)
    page = Page(audit_page(audit, examples="omit"))
    scales = [row for row in page.rows("scales") if row[0] != "attack"]
    wanted = [
        [attack.attack, "", shares(attack.recovered), f"worst 1 %: {shares(attack.worst)}"]
        for defense in audit.defenses
        for attack in sorted(defense.attacks, key=lambda a: -a.recovered.mean)
    ]
    assert scales == wanted
    tables = [row for row in page.rows("numbers") if row[0] != "defense"]
    for metric, decimals in (("psnr", 2), ("mse", 4)):
        for defense in audit.defenses:
            cells = [defense.defense if defense.defense != "none" else "no defense"]
            for attack in defense.attacks:
                e = attack.metrics[metric]
                low, high = (signed(end, decimals) for end in (e.low, e.high))
                cells.append(f"{signed(e.mean, decimals)} [{low}, {high}]")
            assert cells == tables.pop(0)
    # What remains is accuracy.
    for defense, row in zip(audit.defenses, tables, strict=True):
        u, best = defense.utility, defense.attacks[0]
        assert u is not None
        cost = signed(100 * (u.undefended - u.accuracy.mean), 1)
        epsilon = "–" if u.epsilon is None else f"{u.epsilon:g}"
        assert row[1:6] == [shares(u.accuracy), cost, "60", epsilon, shares(best.recovered)]
    cards = page.texts("article")
    for defense, card in zip(audit.defenses, cards, strict=True):
        best = defense.attacks[0]
        assert card.startswith(defense.level)
        assert f"mean, 1000 victims{shares(best.recovered)}" in card
        assert f"worst 1 %, 10 victims{shares(best.worst)}" in card
        assert "by IG" not in card
        assert defense.verdict in " ".join(card.split())
        assert ("Less than half the accuracy is left." in card) == (defense.defense == "gauss-1")
    assert page.texts("pre") == [" ".join(json.dumps(audit.settings, indent=2).split())]
    text = " ".join(page.texts("body"))
    for told in (audit.facts, audit.digests, audit.versions):
        assert all(key in text and value in text for key, value in told.items())
    assert "Apply the inverter to what the server received." in text


def test_marks_on_scales_lie_where_the_shares_are() -> None:
    defense = finding("sign")
    values = (0.0, 0.25, 1.0, 1.3, -0.1, -7.0)
    attacks = tuple(
        replace(defense.attacks[0], attack=f"a{v}", recovered=Estimate(v, v, v, 9)) for v in values
    )
    audit = result(defenses=(replace(defense, attacks=attacks, best="a1.0"),))
    page = Page(audit_page(audit, examples="omit"))
    drawn = [float(a["cx"].rstrip("%")) for a in page.attributes("circle", **{"class": "mean"})[1:]]
    at = dict(zip(sorted(values, reverse=True), drawn, strict=True))
    assert at[0.25] == pytest.approx(at[0.0] + 0.25 * (at[1.0] - at[0.0]), abs=0.02)
    assert at[1.3] == at[1.0] > at[0.0] > at[-0.1] == at[-7.0] > 0
    assert at[1.0] < 100


def test_worst_victims_are_those_of_any_attack() -> None:
    defense = finding("gauss-1")
    other = replace(defense.attacks[1], worst=Estimate(0.97, 0.96, 0.98, 10))
    lost = replace(defense.attacks[2], worst=Estimate(math.nan, math.nan, math.nan, 10))
    changed = replace(defense, attacks=(lost, defense.attacks[0], other))
    card = Page(audit_page(result(defenses=(changed,)), examples="omit")).texts("article")[0]
    assert "worst 1 %, 10 victims, by IG97.0 % [96.0, 98.0]" in card


def test_levels_are_explained_as_the_verdicts_do() -> None:
    text = " ".join(Page(audit_page(result(), examples="omit")).texts("dd"))
    for note in LEVELS.values():
        assert note[1:] in text.replace("\u202f", " ")


def test_best_attack_and_worst_victims_are_marked() -> None:
    page = Page(audit_page(result(("sign",)), examples="omit"))
    assert len(page.attributes("tr", **{"class": "best"})) == 1
    assert page.texts("td", "best") == ["23.44 [23.13, 23.75]", "0.0314 [0.0304, 0.0324]"]
    assert len(page.attributes("path", **{"class": "worst"})) == 1 + len(ATTACKS)


@pytest.mark.parametrize("names", [TEN[:1], TEN[3:4], TEN[:5], TEN])
@pytest.mark.parametrize("text", [False, True])
def test_structure(names: tuple[str, ...], text: bool) -> None:
    audit = with_text(result(names)) if text else result(names)
    html = audit_page(audit)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert '<meta charset="utf-8">' in html[:100]
    assert page.attributes("html") == [{"lang": "en"}]
    tags = [tag for tag, _, _ in page.elements]
    assert [tags.count(tag) for tag in ("h1", "main", "header", "nav", "footer")] == [1] * 5
    heights = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(heights))
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes, _ in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        for name in ("href", "src"):
            target = attributes.get(name, "#main")
            assert target.startswith("data:") or target[1:] in ids
        assert "style" not in attributes and not any(key.startswith("on") for key in attributes)
    assert all(attributes["alt"] for attributes in page.attributes("img"))
    assert "script" not in tags and "iframe" not in tags
    shown = sum(len(d.examples) + len(d.worst) for d in audit.defenses)
    assert tags.count("img") == (0 if text else 2 * shown)


def test_policy_allows_only_the_style_and_images_inside() -> None:
    html = audit_page(result())
    style = html[html.index("<style>") + 7 : html.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = Page(html).attributes("meta", **{"http-equiv": "Content-Security-Policy"})[0]
    assert policy["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"url\(|@import|https?:", style)


def test_equal_audits_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_audit_page(tmp_path / f"{name}.html", result(TEN))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == audit_page(result(TEN))


def test_without_utility_or_with_some() -> None:
    audit = result(("none", "sign", "gauss-1"))
    some = replace(audit.defenses[1], utility=None)
    page = Page(audit_page(replace(audit, defenses=(audit.defenses[0], some)), examples="omit"))
    assert "Not measured for: sign." in page.texts("p", "lead")
    assert len(page.attributes("svg", role="img")) == 2  # for desktops and for phones
    page = Page(audit_page(replace(audit, defenses=(some,)), examples="omit"))
    assert any("was not measured" in text for text in page.texts("p", "lead"))
    assert not page.attributes("svg", role="img")


# Strings and numbers of all kinds.


def renamed(name: str) -> AuditResult:
    """An audit in which every string is this one."""
    defense = finding("prune-99")
    attack = replace(defense.attacks[0], attack=name)
    words = Example(1, (name, "a"), ("b", name), 0.5)
    defense = replace(
        defense,
        defense=name,
        settings={"use": "x", name: [name, {name: name}]},
        source=name,
        verdict=name,
        best=name,
        attacks=(attack,),
        examples=(words,),
        worst=(),
        utility=None,
    )
    strings = {name: name}
    return result(
        defenses=(defense,), title=name, facts=strings, digests=strings, versions=strings,
        settings={name: [name]}, modality="text",
    )  # fmt: skip


def skeleton(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(attributes)) for tag, attributes, _ in page.elements]


PLAIN = skeleton(Page(audit_page(renamed("plain"))))


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(codec=None), min_size=1).filter(lambda s: s not in ("a", "b", "none")))
def test_no_string_gets_out_of_its_place(name: str) -> None:
    html = audit_page(renamed(name))
    html.encode("utf-8")
    page = Page(html)
    assert skeleton(page) == PLAIN
    shown = "".join(
        "\ufffd"
        if 0xD800 <= (code := ord(c)) < 0xE000
        or (code < 32 and c not in "\n\t")
        or 127 <= code < 160
        or 0x202A <= code < 0x202F
        or 0x2066 <= code < 0x206A
        else c
        for c in name
    )
    assert page.texts("h1") == [" ".join(shown.split())]


def test_hostile_names() -> None:
    html = audit_page(renamed(HOSTILE))
    assert skeleton(Page(html)) == PLAIN
    assert "<script" not in html and "{{ 7*7 }}" in html and "\x00" not in html
    assert html.count("</style>") == html.count("</title>") == html.count("</pre>") == 1


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.builds(Estimate, numbers, numbers, numbers, st.integers(0, 9)), min_size=4))
def test_any_numbers(values: list[Estimate]) -> None:
    share, worst, metric, accuracy = values[:4]
    defense = finding("gauss-0.1")
    attack = replace(
        defense.attacks[0], recovered=share, worst=worst, metrics={"psnr": metric, "new": metric}
    )
    assert defense.utility is not None
    utility = replace(defense.utility, accuracy=accuracy, undefended=worst.mean)
    changed = replace(defense, attacks=(attack,), utility=utility, examples=(), worst=())
    page = Page(audit_page(result(defenses=(changed, finding("sign")))))
    for tag, attributes, _ in page.elements:
        for key in ("x", "x1", "x2", "cx", "y", "y1", "y2", "points", "transform"):
            for word in re.findall(r"[-\w.]+%?", attributes.get(key, "")):
                if re.fullmatch("translate|scale|rotate", word):
                    continue
                value = float(word.rstrip("%"))
                assert math.isfinite(value), (tag, key, word)
                assert not word.endswith("%") or 0 <= value <= 100
    row = next(row for row in page.rows("scales") if row[0] == "LTI")
    assert row[2].startswith("n/a" if math.isnan(share.mean) else ("−", *"0123456789∞"))
    assert ("[" in row[2]) == (not math.isnan(share.low) and not math.isnan(share.high))


def test_numbers_as_written() -> None:
    assert [percent(v) for v in (0.4125, -0.081, 1.0, -0.0004, math.nan, math.inf)] == [
        "41.2\u202f%", "−8.1\u202f%", "100.0\u202f%", "0.0\u202f%", "n/a", "∞",
    ]  # fmt: skip
    assert number(-1.25, 1) == "−1.2" and number(-math.inf) == "−∞"


# Private data.


def test_shown_images_are_the_audits() -> None:
    secret = PngImagePlugin.PngInfo()
    secret.add_text("Comment", "a private remark")
    buffer = io.BytesIO()
    Image.fromarray(pixels(png(1)).astype(np.uint8)).save(buffer, format="PNG", pnginfo=secret)
    defense = finding("sign")
    example = Example(4, buffer.getvalue(), png(2, 300, 200), 0.5)
    audit = result(defenses=(replace(defense, examples=(example, *defense.examples)),))
    html = audit_page(audit)
    given_to_it = [e for d in audit.defenses for e in (*d.examples, *d.worst)]
    flat = [data for e in given_to_it for data in (e.original, e.reconstruction)]
    for ours, theirs in zip(pictures(html), flat, strict=True):
        assert isinstance(theirs, bytes)
        assert np.array_equal(pixels(ours), pixels(theirs))
        assert b"private remark" not in ours
    sizes = [(int(a["width"]), int(a["height"])) for a in Page(html).attributes("img")]
    assert sizes[:3] == [(96, 96), (300, 200), (96, 96)]


def test_blurred_pixels_are_not_in_the_page() -> None:
    defense = finding("sign")
    odd = Example(9, png(30, 50, 20), png(31, 3, 1), 0.5)
    audit = result(defenses=(replace(defense, worst=(odd,)),))
    html = audit_page(audit, examples="blur")
    flat = [d for e in (*defense.examples, odd) for d in (e.original, e.reconstruction)]
    found = pictures(html)
    for ours, theirs in zip(found, flat, strict=True):
        assert isinstance(theirs, bytes)
        assert base64.b64encode(theirs).decode() not in html
        assert max(pixels(ours).shape[:2]) <= 4
    # Of each part of the image the mean, and so nothing of what changes within it.
    for ours, theirs in zip(found[:6], flat, strict=False):
        assert isinstance(theirs, bytes)
        means = pixels(theirs).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3))
        assert np.abs(pixels(ours) - means).max() <= 1
        enlarged = pixels(ours).repeat(8, axis=0).repeat(8, axis=1)
        assert not np.array_equal(enlarged, pixels(theirs))
        steps = np.abs(np.diff(enlarged, axis=1)).sum(axis=(0, 2))
        assert not steps[np.arange(31) % 8 != 7].any()
        assert np.abs(np.diff(pixels(theirs), axis=1)).sum(axis=(0, 2)).min() > 0
    assert [pixels(data).shape[:2] for data in found[6:]] == [(1, 4), (1, 1)]
    sizes = [(int(a["width"]), int(a["height"])) for a in Page(html).attributes("img")]
    assert sizes[0] == (96, 96)


@pytest.mark.parametrize("examples", ["blur", "omit"])
def test_hidden_words_are_not_in_the_page(examples: Any) -> None:
    secrets = tuple(f" qz{word.strip()}" for word in WORDS)
    wrong = ("qzrope", *secrets[1:])
    example = Example(3, secrets, wrong, 0.5)
    audit = with_text(result(("sign",)))
    audit = replace(audit, defenses=(replace(audit.defenses[0], examples=(example,)),))
    assert "qz" in audit_page(audit)
    html = audit_page(audit, examples=examples)
    assert "qz" not in html
    marks = len(Page(html).attributes("mark"))
    assert marks == {"blur": 1 + 1 + 2, "omit": 0}[examples]  # the legend's, and the wrong ones


def test_omitted_images_are_not_in_the_page() -> None:
    html = audit_page(result(), examples="omit")
    assert not Page(html).attributes("img") and "base64" not in html
    assert "Left out of this page" in html


def test_wrong_tokens_are_marked() -> None:
    audit = with_text(result(("sign",)))
    page = Page(audit_page(audit))
    assert page.texts("mark")[1:3] == ["rope (wrong)", "weights (wrong)"]
    assert len(page.texts("mark")) == 1 + 2 * 3
    lines = page.texts("dd")
    assert " ".join(w.strip() for w in WORDS) in lines
    assert "7 of 9 tokens right" in page.texts("figcaption")[-1]


@pytest.mark.parametrize(
    ("original", "reconstruction", "told"),
    [
        (b"no image", png(1), "cannot be read as a PNG"),
        (png(1)[:60], png(1), "cannot be read as a PNG"),
        (png(1), ("a",), "an image beside text"),
        (("a", "b"), ("a",), "2 tokens and 1"),
    ],
)
def test_broken_examples(original: Any, reconstruction: Any, told: str) -> None:
    defense = replace(finding("sign"), examples=(Example(1, original, reconstruction, 0.0),))
    with pytest.raises(LTIError, match=told):
        audit_page(result(defenses=(defense,)))


def test_refused_audits_leave_the_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_audit_page(path, result())
    before = path.read_bytes()
    unknown_best = replace(finding("sign"), best="nobody")
    for audit, examples, told in (
        (result(()), "show", "without a defense"),
        (result(), "hide", "expected one of show, blur, omit"),
        (result(defenses=(unknown_best,)), "show", "'nobody'; expected one of LTI, IG"),
    ):
        with pytest.raises(LTIError, match=re.escape(told)):
            write_audit_page(path, audit, examples=examples)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


# The plot.

places = st.floats(-0.5, 1.0).map(lambda v: round(v, 1))
points = st.lists(
    st.builds(
        lambda name, a, b: Point(name, "exposed", (a, a - 0.02, a + 0.02), (b, math.nan, math.nan)),
        st.sampled_from(
            ["gauss", "prune-0.99", "a name that is far too long for a label", "中文字"]
        ),
        places,
        st.floats(0.0, 1.0).map(lambda v: round(v, 1)),
    ),
    min_size=1,
    max_size=10,
)


@settings(deadline=None, max_examples=30)
@given(points)
def test_frontier_holds_those_that_none_beats(given_points: list[Point]) -> None:
    def beaten(p: Point) -> bool:
        return any(
            q.share[0] <= p.share[0] and q.accuracy[0] >= p.accuracy[0]
            and (q.share[0], q.accuracy[0]) != (p.share[0], p.accuracy[0])
            for q in given_points
        )  # fmt: skip

    kept = sorted((p.share[0], p.accuracy[0]) for p in given_points if not beaten(p))
    assert [(p.share[0], p.accuracy[0]) for p in frontier(given_points)] == kept


@settings(deadline=None, max_examples=30)
@given(points, st.sampled_from([(760, 440), (328, 400)]))
def test_labels_overlap_nothing(given_points: list[Point], size: tuple[int, int]) -> None:
    plot = lay_out(given_points, width=size[0], height=size[1], undefended=0.7)
    boxes = [
        (label.x, label.y + 4 - LINE_HEIGHT, label.x + text_width(label.text), label.y + 4)
        for label in plot.labels
    ]
    shrunk = [(a + 0.1, b + 0.1, c - 0.1, d - 0.1) for a, b, c, d in boxes]  # rounded to 0.1
    for position, box in enumerate(shrunk):
        assert not any(overlap(box, other) for other in shrunk[:position])
        assert not any(overlap(box, box_around(mark.x, mark.y)) for mark in plot.marks)
        assert box[0] > plot.left and box[2] < plot.width and box[1] > 0 and box[3] < plot.height
    assert len(plot.labels) + len(plot.unlabelled) == len(given_points)


def test_marks_lie_where_the_values_are() -> None:
    at = [(0.0, 0.0), (0.5, 0.4), (1.0, 0.8), (-3.0, 0.8)]
    nan = math.nan
    ends = (0.3, 0.5)
    given_points = [Point("a", "exposed", (x, nan, nan), (y, *ends)) for x, y in at]
    plot = lay_out(given_points, width=760, height=440, undefended=0.8)
    xs, ys = [m.x for m in plot.marks], [m.y for m in plot.marks]
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.2) and xs[2] == plot.right
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.2) and ys[0] == plot.bottom
    assert xs[3] == plot.left and ys[3] == ys[2] == plot.undefended
    assert plot.half == ys[1]
    assert [m.across for m in plot.marks] == [None] * 4
    ticks = {round(value, 6): y for y, value in plot.yticks}
    bar = plot.marks[1].upright
    assert bar is not None
    assert bar[0] == pytest.approx((ticks[0.2] + ticks[0.4]) / 2, abs=0.2)
    assert bar[1] == pytest.approx((ticks[0.4] + ticks[0.6]) / 2, abs=0.2)
    far = [Point(f"number-{n}", "exposed", (n / 10, nan, nan), (0.5, nan, nan)) for n in range(9)]
    assert len(lay_out(far, width=760, height=440).labels) == 9


# In a browser.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = {
    "images": lambda: audit_page(result()),
    "ten": lambda: audit_page(result(TEN), examples="blur"),
    "text": lambda: audit_page(with_text(result(("none", "gauss-0.1")))),
    "hostile": lambda: audit_page(renamed(HOSTILE + "x" * 300 + " " + "中" * 200)),
}
# Contrast of every visible text with what is behind it, below 4.5; as (text, ratio).
CONTRAST = """() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => {
    const [r, g, b] = parts(c).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if ((parts(c)[3] ?? 1) === 1) return c;
    }
  };
  const low = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest('title')) continue;
    seen++;
    const style = getComputedStyle(e);
    const ink = light(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const ground = light(behind(e));
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (ratio < 4.5) low.push([walk.currentNode.data, ratio]);
  }
  return [seen, low];
}"""
# Pairs of the visible plot's texts that overlap by more than a pixel.
OVERLAPS = """() => {
  const all = [...document.querySelectorAll('.plot .name, .plot .note')]
    .filter(e => e.checkVisibility()).map(e => [e.textContent, e.getBoundingClientRect()]);
  const bad = [];
  all.forEach(([s, a], i) => all.slice(0, i).forEach(([t, b]) => {
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) bad.push([s, t]);
  }));
  return [all.length, bad];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here; Debian's package of that name has it")
    with api.sync_playwright() as playwright:
        # Shared memory may be as small as a container gives it.
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser(browser: Any, tmp_path: Path, name: str, width: int, scheme: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES[name](), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert not told
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    widths = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert all(widths) and len(widths) == len(
        Page(path.read_text(encoding="utf-8")).attributes("img")
    )
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    seen, low = page.evaluate(CONTRAST)
    assert seen > 60 and low == []
    drawn, bad = page.evaluate(OVERLAPS)
    assert bad == [] and (name == "hostile" or drawn > 3)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(251, 251, 249)"
    assert dark == (scheme == "dark")
    page.close()


def test_in_print_everything_is_open_and_light(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_audit_page(path, result())
    page = browser.new_page(color_scheme="dark")
    page.goto(path.as_uri())
    height = "document.querySelector('pre').getBoundingClientRect().height"
    visible = "document.querySelector('pre').checkVisibility({contentVisibilityAuto: true})"
    assert not page.evaluate(visible)
    page.emulate_media(media="print")
    page.wait_for_function(visible)  # once the page is laid out for paper
    assert page.evaluate(height) > 50
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.evaluate("document.querySelector('nav').checkVisibility()")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
