"""What follows a row: how far its label looks, and which features know it.

An innovation is what a feature brings that its own past did not tell: the rest after a regression on its last
three values and its means over 8, 32 and 128 rows (HAR; Corsi 2009). A label that looks h rows ahead goes
together with the innovations of the next h rows and with none after them.

Thresholds. A correlation counts at 6 standard errors, taken from n / w independent spans of w rows and from
the products themselves (White 1980), so that wild spells are no evidence: 2e-9 by chance, times fewer than
1e5 comparisons. It must also be at least 0.15, for a small one may be a regression that misses some
memory. What merely repeats another feature later (lags, moving averages) or itself is left out.

Shapes: M rows of the sample, E elements of a row, S spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from app.datasets.audit.findings import Finding
from app.datasets.audit.sample import Floats, Ints, Sample
from app.datasets.features import Features
from app.datasets.schema import Dataset
from app.datasets.split import SplitPlan
from app.datasets.values import element_name

SPANS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIGMAS = 6.0
REACHES = 0.15
KNOWS_FUTURE = 0.3  # share of another feature's future that is explained
REPEATS = 0.2  # correlation with earlier innovations beyond which a feature says what was said before
MAX_CLASSES_JUDGED, MAX_CANDIDATES, MAX_LAG = 8, 24, 256
MIN_SPANS = 20
MAX_LEADERS = 64
_MEANS = (8, 32, 128)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far labels look by the evidence. rows: declared, and evident beyond that (0: none)."""

    declared_rows: int
    beyond_rows: int


class Future:
    """The innovations of a sample's features and what goes together with its labels."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._kept = np.flatnonzero(np.ptp(sample.values_ME, axis=0) > 0) if len(sample) else np.empty(0, int)
        self._values = sample.values_ME[:, self._kept]
        self._innovations, self._from = _innovations(self._values, sample.pieces_M)
        self._sums = np.concatenate([np.zeros((1, len(self._kept))), np.cumsum(self._innovations, axis=0)])
        counts = np.bincount(sample.labels_M) if len(sample) else np.zeros(1, np.int64)
        chosen = [k for k in np.argsort(-counts, kind="stable")[:MAX_CLASSES_JUDGED] if counts[k]]
        self._known: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        self._classes = (sample.labels_M[:, None] == np.array(chosen)[None, :]).astype(float)

    def find(self, dataset: Dataset, plan: SplitPlan, told: Set[int]) -> Iterator[Finding]:
        """Report labels that look farther than declared, and features that know what follows.

        told: elements that another check has reported.
        """
        if len(self._sample) < 200 or not self._kept.size or self._classes.shape[1] < 2:
            return
        declared = _declared_rows(self._sample)
        beyond, finding = self._find_reach(declared, dataset, plan, told)
        if finding is not None:
            yield finding
        if declared + beyond:
            yield from self._find_knowing(declared + beyond, dataset.features, told)

    # How far labels look

    def _find_reach(
        self, declared: int, dataset: Dataset, plan: SplitPlan, told: Set[int]
    ) -> tuple[int, Finding | None]:
        strong: list[tuple[float, float, int, int]] = []
        for span in SPANS:
            correlation, sigmas = self._with_labels(declared, span)
            for e in np.flatnonzero((correlation >= REACHES) & (sigmas >= SIGMAS)).tolist():
                if int(self._kept[e]) not in told:
                    strong.append((float(correlation[e]), float(sigmas[e]), span, e))
        if not strong:
            return 0, None
        repeated = self._repeated(sorted({element for *_, element in strong}), declared)
        strong = [one for one in strong if one[3] not in repeated]
        if not strong:
            return 0, None
        strongest, errors, span, element = max(strong)
        rows = self._farthest(declared, element, 2 * span)
        name = element_name(dataset.features, int(self._kept[element]))
        has_none = any(code == "no_horizon" for code, _ in dataset.warnings)
        known = "none is declared" if has_none else f"declared are {dataset.horizon_s:g} s"
        if dataset.label_end is not None:
            known = f"label_end and horizon reach {declared} row(s)"
        cuts = "the cut" if len(plan.parts) == 2 else "each cut"
        return rows, Finding(
            "no_horizon" if has_none else "horizon_too_short",
            "leak",
            f"Labels look about {declared + rows} rows ahead, but {known}: they go together with what {name}"
            f" does in the {span} row(s) after that (correlation {strongest:.2f}, {errors:.0f} standard"
            f" errors), so about {rows} training windows before {cuts} hold labels decided in the next part.",
            "Set data.horizon_s to how far labels look, or store label_end for each row.",
            {
                "declared_rows": declared,
                "evident_rows": declared + rows,
                "feature": name,
                "correlation": strongest,
                "sigmas": errors,
            },
        )

    def _with_labels(self, skip: int, span: int) -> tuple[Floats, Floats]:
        """For each feature the strongest correlation of a class with its innovations in a span, and its z."""
        known = self._known.get((skip, span))
        if known is None:
            rows = self._rows(skip + span)
            known = np.zeros(len(self._kept)), np.zeros(len(self._kept))
            if len(rows) >= MIN_SPANS * span:
                ahead = self._sums[rows + skip + span + 1] - self._sums[rows + skip + 1]
                known = _strongest(self._classes[rows], ahead, span)
            self._known[skip, span] = known
        return known

    def _rows(self, lag: int) -> Ints:
        """Rows with `lag` rows after them in their piece, whose innovations are known."""
        rows = self._sample.pairs(lag)
        return rows[rows >= self._from[rows]]

    def _farthest(self, declared: int, element: int, limit: int) -> int:
        """The last row ahead whose innovation alone goes together with the label at 4 standard errors."""
        last = 1
        for lag in range(1, limit + 1):
            rows = self._rows(declared + lag)
            if len(rows) < MIN_SPANS:
                break
            ahead = self._innovations[rows + declared + lag][:, [element]]
            if _strongest(self._classes[rows], ahead, 1)[1][0] >= 4:
                last = lag
        return last

    def _repeated(self, candidates: list[int], declared: int) -> set[int]:
        """Those whose innovations say what another feature, or they themselves, said before.

        A lag or a moving average goes together with labels longer than the label looks. Features that go
        with the label are looked at first.
        """
        leaders = set(candidates)
        for span in SPANS:
            correlation, sigmas = self._with_labels(0, span)
            leaders |= {int(e) for e in np.flatnonzero((correlation >= REACHES) & (sigmas >= SIGMAS))}
        chosen = [*sorted(leaders), *(e for e in range(len(self._kept)) if e not in leaders)][:MAX_LEADERS]
        size = 1 << int(np.ceil(np.log2(2 * len(self._sample))))
        e = self._innovations
        scaled = (e - e.mean(axis=0)) / np.maximum(e.std(axis=0), 1e-300)
        spectra = {i: np.fft.rfft(scaled[:, i], size) for i in {*chosen, *candidates}}
        repeated: set[int] = set()
        for i in candidates:
            for j in {*chosen, i}:
                # e_i(t + k) against e_j(t), all k at once.
                crossed = np.fft.irfft(spectra[i] * np.conj(spectra[j]), size)[1 : MAX_LAG + 1]
                if np.abs(crossed).max() / len(self._sample) > REPEATS:
                    repeated.add(i)
                    break
        return repeated

    # Which features know

    def _find_knowing(self, reach: int, features: Features, told: Set[int]) -> Iterator[Finding]:
        """Report a feature x whose news beyond another's present and past tells that other's future.

        In lags and averages of one series the older column's future is known too; what tells them from a
        leak is the label, which looks ahead: the news of a leaking column goes together with the label as
        the future does, in the same direction as what follows still later, or up to the label's end; and
        what came before does not go together with it half as much, as it does where the past predicts.
        """
        candidates = [e for e in self._candidates(reach) if int(self._kept[e]) not in told]
        bases = self._bases(reach)
        found: list[tuple[float, int, int, int, float]] = []
        for element in candidates:
            best: tuple[float, int, int, int, float] | None = None
            for base in bases:
                if base == element:
                    continue
                known = self._knows(element, base, reach)
                if known is not None and (best is None or known > best):
                    best = known
            if best is not None:
                found.append(best)
        for share, element, base, span, with_label in sorted(found, reverse=True)[:5]:
            name = element_name(features, int(self._kept[element]))
            other = element_name(features, int(self._kept[base]))
            yield Finding(
                "feature_knows_future",
                "leak",
                f"Feature {name} tells what {other} does in the next {span} row(s): beyond {other}'s own"
                f" present and past it explains {share:.0%} of that, and it goes together with the label"
                f" (correlation {with_label:.2f}).",
                "Leave it out of data.features, or rebuild it from rows up to its own only (no centred"
                " windows, backward fills, negative shifts or figures of a whole day).",
                {
                    "feature": name,
                    "of": other,
                    "rows": span,
                    "explained": share,
                    "label_correlation": with_label,
                },
            )

    def _candidates(self, reach: int) -> list[int]:
        """Features whose level or news goes together with the label."""
        rows = self._rows(0)
        level, _ = _strongest(self._classes[rows], self._values[rows], reach)
        news, _ = _strongest(self._classes[rows], self._innovations[rows], 1)
        score = np.maximum(level, news)
        # Against another feature it may stand out more than alone: the bar here is lower.
        order = np.argsort(-score, kind="stable")
        return [int(e) for e in order[:MAX_CANDIDATES] if score[e] >= 0.05]

    def _bases(self, reach: int) -> list[int]:
        """Features whose future goes together with the label."""
        score = np.zeros(len(self._kept))
        for span in (s for s in SPANS if s <= max(2 * reach, 1)):
            correlation, sigmas = self._with_labels(0, span)
            score = np.maximum(score, np.where(sigmas >= SIGMAS, correlation, 0))
        order = np.argsort(-score, kind="stable")
        return [int(e) for e in order[:MAX_CANDIDATES] if score[e] >= REACHES]

    def _knows(self, element: int, base: int, reach: int) -> tuple[float, int, int, int, float] | None:
        best: tuple[float, int, int, int, float] | None = None
        for span in (s for s in SPANS if s <= max(2 * reach, 1) and s <= 64):
            rows = self._rows(span)
            if len(rows) < 2 * MIN_SPANS * span:
                break
            past = np.stack([np.ones(len(rows)), *(self._values[rows - k, base] for k in range(3))], axis=1)
            news = _rest(past, self._values[rows, element])
            ahead = self._sums[rows + span + 1, base] - self._sums[rows + 1, base]
            told, sigmas = _correlation(news, ahead, span)
            if told**2 < KNOWS_FUTURE or sigmas < SIGMAS:
                continue
            classes = self._classes[rows]
            with_label = [_correlation(classes[:, k], news, max(span, 1)) for k in range(classes.shape[1])]
            k = int(np.argmax([abs(c) for c, _ in with_label]))
            correlation, sigmas = with_label[k]
            future, _ = _correlation(classes[:, k], ahead, span)
            if abs(correlation) < REACHES or sigmas < SIGMAS or future * correlation * told <= 0:
                continue
            if not (self._goes_on(base, span, reach, k, future) and self._begins(base, span, k, future)):
                continue
            known = (told**2, element, base, span, abs(correlation))
            best = known if best is None else max(best, known)
        return best

    def _goes_on(self, base: int, span: int, reach: int, k: int, future: float) -> bool:
        """Whether the label also goes with what follows the span, or has ended by then."""
        rows = self._rows(span + reach)
        if len(rows) < MIN_SPANS * reach:
            return span >= reach
        after = self._sums[rows + span + reach + 1, base] - self._sums[rows + span + 1, base]
        correlation, sigmas = _correlation(self._classes[rows, k], after, reach)
        if sigmas < 4:
            return span >= reach
        return correlation * future > 0

    def _begins(self, base: int, span: int, k: int, future: float) -> bool:
        """Whether the label goes with the next rows far more than with the same number of rows before."""
        rows = self._rows(0)
        rows = rows[rows + 1 - span >= self._from[rows]]
        before = self._sums[rows + 1, base] - self._sums[rows + 1 - span, base]
        return abs(_correlation(self._classes[rows, k], before, span)[0]) < abs(future) / 2


def _declared_rows(sample: Sample) -> int:
    """How many rows ahead label ends reach: their 99.9 % quantile, pieces' ends left out."""
    reaches = []
    for piece in np.unique(sample.pieces_M):
        inside = sample.pieces_M == piece
        times, ends = sample.times_M[inside], sample.ends_M[inside]
        last = np.searchsorted(times, ends, side="right") - 1
        open_ended = last >= len(times) - 1
        reaches.append(np.maximum(last - np.arange(len(times)), 0)[~open_ended])
    together = np.concatenate(reaches)
    return int(np.quantile(together, 0.999, method="higher")) if together.size else 0


def _innovations(values_ME: Floats, pieces_M: Ints) -> tuple[Floats, Ints]:
    """The innovations [M, E], 0 where a piece has too little past; and the first row that has one, [M]."""
    num_rows, num_elements = values_ME.shape
    found = np.zeros_like(values_ME)
    starts = np.flatnonzero(np.diff(pieces_M, prepend=pieces_M[0] - 1 if num_rows else 0))
    first_M = np.repeat(starts, np.diff(np.append(starts, num_rows)))
    shortest = int(np.median(np.diff(np.append(starts, num_rows)))) if num_rows else 0
    means = [size for size in _MEANS if size <= shortest // 8]
    past = max([3, *means])
    rows = np.flatnonzero(np.arange(num_rows) - first_M >= past)
    if len(rows) < 10 * (4 + len(means)):
        return found, np.full(num_rows, num_rows)
    for element in range(num_elements):
        x = values_ME[:, element] - values_ME[:, element].mean()
        sums = np.concatenate([[0.0], np.cumsum(x)])
        known = [np.ones(len(rows)), *(x[rows - k] for k in (1, 2, 3))]
        known += [(sums[rows] - sums[rows - size]) / size for size in means]
        found[rows, element] = _rest(np.stack(known, axis=1), x[rows])
    return found, first_M + past


def _rest(known: Floats, values: Floats) -> Floats:
    """What a least-squares regression on `known` leaves of `values`."""
    scale = np.sqrt(np.square(known).mean(axis=0))
    scaled = known / np.where(scale > 0, scale, 1)
    weights = np.linalg.lstsq(scaled.T @ scaled, scaled.T @ values, rcond=1e-12)[0]
    rest: Floats = values - scaled @ weights
    # What is left of an exact copy is rounding, not news.
    if np.square(rest).sum() <= 1e-10 * np.square(values - values.mean()).sum():
        return np.zeros_like(rest)
    return rest


def _strongest(classes: Floats, ahead: Floats, span: int) -> tuple[Floats, Floats]:
    """For each column of `ahead`, the strongest |correlation| with a class, and its standard errors."""
    u = classes - classes.mean(axis=0)
    v = ahead - ahead.mean(axis=0)
    products = u.T @ v
    size = np.sqrt(np.square(u).sum(axis=0)[:, None] * np.square(v).sum(axis=0)[None, :])
    correlation = np.abs(products) / np.maximum(size, 1e-300)
    spread = np.sqrt(np.square(u).T @ np.square(v))
    sigmas = np.minimum(np.abs(products) / np.maximum(spread, 1e-300), correlation * sqrt(len(u))) / sqrt(
        span
    )
    at = correlation.argmax(axis=0)
    columns = np.arange(ahead.shape[1])
    return correlation[at, columns], sigmas[at, columns]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64], span: int) -> tuple[float, float]:
    """The correlation of two columns, and how many standard errors it is from 0."""
    # Sums instead of dot products: on columns this short a threaded BLAS waits more than it works.
    u, v = a - a.mean(), b - b.mean()
    products = u * v
    product, size = float(products.sum()), sqrt(float(np.square(u).sum()) * float(np.square(v).sum()))
    if not size:
        return 0.0, 0.0
    spread = sqrt(float(np.square(products).sum()))
    correlation = product / size
    return correlation, min(abs(product) / max(spread, 1e-300), abs(correlation) * sqrt(len(u))) / sqrt(span)
