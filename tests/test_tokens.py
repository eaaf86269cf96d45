"""Which answer tokens carry the gap: the curve, its band, the telling tokens, the pair on the page."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import reference_statistics as slow
from findings import TEXTS
from measured_runs import rows_of, run
from tables import RECIPE, Table, changed, compared, four_tables, random_pair, with_reference, with_scores

from graddiag.analyzers import MIN_COUNT, TokenView, token_view
from graddiag.bands import simultaneous_band
from graddiag.decoding import target_texts
from graddiag.models import load_model
from graddiag.pair_view import pair_view
from graddiag.reporting import report
from graddiag.statistics import cluster_mean
from graddiag.token_texts import TOKENS_FILE, read_texts


def _sides(n: int = 24, seed: int = 0) -> tuple[Table, Table]:
    """Two sides whose answers repeat a few tokens in random order, with a gap of 9 nats more at the first token."""
    left, right = random_pair(replace(RECIPE, n=n, clusters=12), seed=seed)
    rng = np.random.default_rng(seed)
    answers = tuple(rng.integers(0, 6, len(t)) for t in left.signals.target_ids)
    losses = []
    for tokens, base in zip(answers, left.signals.token_loss, strict=True):
        more = np.zeros(len(tokens))
        more[0] = 9.0
        losses.append(base + more)
    rows = {"token_loss": tuple(losses), "loss": np.array([v.mean() for v in losses]), "target_ids": answers}
    return changed(left, lambda s: replace(s, **rows)), changed(right, lambda s: replace(s, target_ids=answers))


def _gaps(left: Table, right: Table) -> list[np.ndarray]:
    return [a - b for a, b in zip(left.signals.token_loss, right.signals.token_loss, strict=True)]


@pytest.fixture(scope="module")
def view() -> TokenView:
    return token_view(compared(*_sides()), TEXTS)


def test_the_curve_weighted_by_its_counts_sums_to_the_gap_of_all_tokens(view: TokenView) -> None:
    gaps = _gaps(*_sides())
    assert np.sum(view.gap.mean * view.gap.n) == pytest.approx(sum(float(g.sum()) for g in gaps))
    assert view.gap.n.sum() == view.n_tokens == sum(len(g) for g in gaps)
    for k in range(len(view.gap.n)):
        assert view.gap.mean[k] == pytest.approx(slow.mean([g[k] for g in gaps if len(g) > k]))


def test_contributions_of_positions_and_of_tokens_sum_to_the_mean_gap(view: TokenView) -> None:
    gaps = _gaps(*_sides())
    mean = slow.mean([float(g.mean()) for g in gaps])
    assert view.mean_gap == pytest.approx(mean)
    assert sum(t.contribution for t in view.telling) == pytest.approx(mean)
    assert view.share.sum() == pytest.approx(1)
    assert view.summary()["tokens/first_share"] == pytest.approx(
        slow.mean([g[0] / len(g) for g in gaps]) / mean
    )  # fmt: skip


def test_tokens_are_counted_and_averaged_as_one_would_by_hand(view: TokenView) -> None:
    left, right = _sides()
    seen: dict[int, list[float]] = defaultdict(list)
    part: dict[int, float] = defaultdict(float)
    pairs: dict[int, set[int]] = defaultdict(set)
    for p, (tokens, gap) in enumerate(zip(left.signals.target_ids, _gaps(left, right), strict=True)):
        for token, g in zip(tokens.tolist(), gap.tolist(), strict=True):
            seen[token].append(g)
            part[token] += g / len(gap) / len(left.signals)
            pairs[token].add(p)
    assert [t.token for t in view.telling] == sorted(part, key=lambda t: -abs(part[t]))
    for t in view.telling:
        assert (t.count, t.pairs) == (len(seen[t.token]), len(pairs[t.token]))
        assert t.mean_gap == pytest.approx(slow.mean(seen[t.token]))
        assert t.contribution == pytest.approx(part[t.token])
        assert t.text == TEXTS.get(t.token)


def test_a_rare_token_has_no_rank_by_its_mean() -> None:
    left, right = _sides()
    rare = tuple(
        np.where(np.arange(len(t)) == 0, 99, t) if k == 0 else t for k, t in enumerate(left.signals.target_ids)
    )
    sides = [changed(t, lambda s: replace(s, target_ids=rare)) for t in (left, right)]
    got = token_view(compared(*sides))
    assert any(t.token == 99 for t in got.telling)
    assert all(t.count >= MIN_COUNT for t in got.by_mean)
    sizes = [abs(t.mean_gap) for t in got.by_mean]
    assert sizes == sorted(sizes, reverse=True)


def test_pairs_with_other_tokens_are_not_in_it() -> None:
    left, right = _sides()
    other = changed(right, lambda s: replace(s, target_ids=(s.target_ids[0] + 1, *s.target_ids[1:])))
    without = token_view(compared(left, other))
    assert without.n_pairs == 23
    assert without.n_tokens == token_view(compared(left, right)).n_tokens - len(left.signals.target_ids[0])


def test_without_a_pair_or_a_gap_nothing_is_claimed() -> None:
    left, right = _sides()
    alone = changed(right, lambda s: replace(s, ids=tuple(f"x{i}" for i in s.ids)))
    nothing = token_view(compared(left, alone))
    assert (nothing.n_pairs, nothing.telling, nothing.shown) == (0, (), None)
    assert set(nothing.summary().values()) == {0, None}
    same = token_view(compared(left, changed(left, lambda s: s)))
    assert same.summary()["tokens/first_gap"] == 0
    assert same.summary()["tokens/first_share"] is None


def test_the_band_of_one_point_is_the_interval_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    values, clusters = rng.normal(size=40), np.arange(40) % 7
    band = simultaneous_band(values[:, None], clusters)
    single = cluster_mean(values, clusters)
    draw = 0.08  # Monte-Carlo error of the quantile of 2,000 draws, as a share of the width
    assert band.high[0] - band.mean[0] == pytest.approx(single.high - single.value, rel=draw)


def test_the_band_covers_whole_curves_as_often_as_it_says() -> None:
    trials, rows, points = 300, 40, 12
    rng = np.random.default_rng(0)
    clusters = np.arange(rows) % 20
    truth = np.linspace(-1, 1, points)
    whole = pointwise = 0
    for k in range(trials):
        shared = rng.normal(size=(20, points))[clusters]
        values = truth + shared + rng.standard_t(5, size=(rows, points)).cumsum(axis=1)
        values[rng.random(values.shape) < 0.2] = np.nan
        band = simultaneous_band(values, clusters, seed=k)
        whole += bool(np.all((band.low <= truth) & (truth <= band.high)))
        singles = [cluster_mean(column, clusters) for column in values.T]
        pointwise += all(s.low <= t <= s.high for s, t in zip(singles, truth, strict=True))
    error = 3.3 * math.sqrt(0.95 * 0.05 / trials)
    assert whole / trials >= 0.95 - error
    assert pointwise / trials < 0.95 - error, "single intervals do not hold a whole curve: the test can see it"


def test_a_band_is_undefined_where_too_few_rows_or_clusters_reach() -> None:
    values = np.random.default_rng(0).normal(size=(8, 3))
    values[4:, 1] = np.nan
    values[[1, 3, 5, 7], 2] = np.nan
    band = simultaneous_band(values, np.arange(8) % 2)
    assert np.isfinite([band.low[0], band.high[0]]).all()
    assert np.isnan(band.low[1:]).all()
    assert np.isfinite(band.mean).all()


def test_alignment_through_positions_sums_to_the_cosine_with_safety() -> None:
    tables = four_tables()
    left, right = (with_scores(with_reference(tables[s], tables["safety"])) for s in ("left", "right"))
    got = token_view(compared(left, right)).through
    assert got is not None
    for side, band, prompt in ((left, got.left, got.prompt_left), (right, got.right, got.prompt_right)):
        s = side.signals
        assert s.reference is not None
        assert s.token_alignment is not None
        size = math.sqrt(sum(n**2 for n in s.reference.norms.values()))
        norms = np.sqrt(sum(n**2 for n in s.norms.values()))
        whole = slow.mean([float(v.sum()) / (size * n) for v, n in zip(s.token_alignment, norms, strict=True)])
        assert prompt + np.sum(band.mean * band.n) / len(s) == pytest.approx(whole)
        first = [v[len(v) - n] / (size * m) for v, n, m in zip(s.token_alignment, s.n_tokens, norms, strict=True)]
        assert band.mean[0] == pytest.approx(slow.mean(first)), "the last position of the prompt predicts token 1"


class _Spans(HTMLParser):
    """Texts and titles of the spans of a piece of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.styles: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert given.keys() <= {"title", "style"}
        self.titles.append(given["title"] or "")
        self.styles.append(given.get("style") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_pair_on_the_page_is_the_median_one_and_its_text_is_never_markup(view: TokenView) -> None:
    shown, seen = view.shown, pair_view(view)
    assert shown is not None
    assert seen is not None
    gaps = sorted(float(g.mean()) for g in _gaps(*_sides()))
    assert shown.gap == pytest.approx(gaps[(len(gaps) - 1) // 2])
    for name, answer in seen.sides:
        spans = _Spans()
        spans.feed(str(answer))
        assert set(spans.tags) == {"span"}
        assert len(spans.titles) == len(shown.tokens)
        assert "\x1b" not in str(answer)
        expected = "".join(f"#{i} " if t is None else t for i, t in zip(shown.tokens, shown.texts, strict=True))
        assert spans.text.replace("↵", "") == expected.replace("\x1b", "\\x1b")
        for k, (title, style) in enumerate(zip(spans.titles, spans.styles, strict=True)):
            assert f"gap {shown.left[k] - shown.right[k]:+.3f} nats" in title
            harder = (shown.left[k] > shown.right[k]) == (name == "left")
            assert harder or not style


def test_texts_of_single_tokens_put_together_are_the_answer() -> None:
    from graddiag.data import read_set
    from graddiag.encoding import encode

    _, tokenizer = load_model("tiny")
    encoded = encode(read_set("insecure", limit=3), tokenizer, max_length=2000)
    texts = target_texts([encoded], tokenizer)
    for row in encoded.rows:
        tokens = row.tokens[row.start :].tolist()
        assert "".join(texts[i] for i in tokens) == tokenizer.decode(tokens)


def test_a_report_needs_the_kept_texts_only_and_does_without_them(tmp_path: Path) -> None:
    found = run(tmp_path, load_model("tiny"), n=6, token_scores=True, figures=True)
    first = found.findings.tokens.telling[0]
    assert first.text == read_texts(tmp_path)[first.token]
    again = report(tmp_path)
    assert [t.text for t in again.findings.tokens.telling] == [t.text for t in found.findings.tokens.telling]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "One pair, token by token" in html
    assert "through the position that predicts it" in html
    assert "caused by" not in html
    (tmp_path / TOKENS_FILE).unlink()
    assert report(tmp_path, figures=False).findings.tokens.telling[0].text is None
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["tokens/n"] > 0
    assert len(rows_of("insecure", 6)) == found.findings.tokens.n_pairs
