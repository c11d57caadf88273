"""The table of acquisition criteria: what each computes, what it needs, when to use it.

A new criterion is a formula in ``csrc/math/criteria.h``, a row here and its definition for the
tests; what it needs and can do is read from the compiled core.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ntkfast import ops

from .arrays import ArgumentValueError

__all__ = ["CriteriaTable", "Criterion", "automatic", "criteria", "find"]


@dataclass(frozen=True)
class Criterion:
    """A row of the table. Every utility is "larger = query first".

    Attributes
    ----------
    name : str
        What users write.
    formula : str
        Utility of a candidate c; notation as in `criteria`.
    needs : tuple of str
        Arguments of `utilities` and `select` that it reads besides ``candidates``, ``evaluation``,
        ``weights`` and ``noise``.
    use : str
        When to use it.
    look_ahead : bool
        It looks at the outputs after a hypothetical label (so it needs two classes at least, and F
        moves with every pick of a sequential batch), not at the covariance alone.
    compiled : str
        The compiled criterion behind it, an empty string where there are no pairs to score.
    coverage : dict
        Of a criterion that covers: the compiled one by name of `similarity`; else empty. It reads
        the kernel as it was before any label, and no outputs.
    uncertainty : bool
        What is covered is weighted by the margin of the two most probable classes.
    moments : bool
        It needs no pairs in weight space: q_c / (s_c + lam_c) with q_x = psi_x^T G psi_x.
    fisher : bool
        Weights and noises come from the trained network's softmax(f / temperature).
    float32_limit : float
        Largest variance over ridge up to which float32 keeps its ranking; beyond, precision="auto"
        computes in float64.
    """

    name: str
    formula: str
    needs: tuple[str, ...]
    use: str
    look_ahead: bool
    compiled: str
    moments: bool = False
    fisher: bool = False
    float32_limit: float = math.inf
    coverage: Mapping[str, str] = field(default_factory=dict)
    uncertainty: bool = False

    @property
    def holds_evaluation(self) -> bool:
        """Whether a batch from disk holds features of the evaluation points in memory."""
        return bool(self.compiled) and (self.product or not self.moments)

    @property
    def product(self) -> bool:
        """Whether what a candidate covers is multiplied by the utility of `compiled`."""
        return bool(self.coverage) and self.compiled not in self.coverage.values()

    def check_outputs(self, k: int, owner: str) -> None:
        """Raise a ValueError if it compares classes and `owner` has one output."""
        if k == 1 and (self.look_ahead or self.fisher or self.uncertainty):
            raise ArgumentValueError(
                "criterion",
                f"{self.name} compares classes, and {owner} has one output: use "
                "variance_reduction or epig, or give a one-logit classifier two columns, "
                "[0, logit]",
            )


# By the names of `similarity`, the default first.
_SIMILARITIES = {"rbf": "gaussian_coverage", "cosine": "cosine_coverage"}

_ARGUMENTS = ("label_probs", "temperature", "log_loss_targets")


def _row(
    name: str,
    formula: str,
    use: str,
    *,
    compiled: str = "",
    fisher: bool = False,
    float32_limit: float = math.inf,
) -> Criterion:
    """Return a row with what the compiled criterion, default `name`, is known to need."""
    traits = ops.criteria()[compiled or name]
    return Criterion(
        name=name,
        formula=formula,
        needs=tuple(argument for argument in _ARGUMENTS if argument in traits),
        use=use,
        look_ahead="look_ahead" in traits,
        compiled=compiled or name,
        moments="moments" in traits,
        fisher=fisher,
        float32_limit=float32_limit,
    )


def _coverage(
    name: str,
    formula: str,
    use: str,
    *,
    forms: Mapping[str, str] = _SIMILARITIES,
    uncertainty: bool = False,
) -> Criterion:
    """Return a row of a criterion that covers."""
    needs = ("similarity",) if len(forms) > 1 else ()
    return Criterion(
        name=name,
        formula=formula,
        needs=(*needs, "radius", *(("temperature",) if uncertainty else ())),
        use=use,
        look_ahead=False,
        compiled=next(iter(forms.values())),
        coverage=forms,
        uncertainty=uncertainty,
    )


_TABLE = (
    _row(
        name="mlmoc",
        formula="sum_x v |f+_{c,ŷ}(x) - f(x)|, ŷ = argmax f(c)",
        use="the paper's criterion (eq. 13): most likely model output change",
    ),
    _row(
        name="emoc",
        formula="sum_y P(y|c) sum_x v |f+_{c,y}(x) - f(x)|",
        use="mlmoc where the most likely label is often wrong: expected model output change",
    ),
    _row(
        name="expected_entropy",
        formula="-sum_y P(y|c) sum_x v H(softmax f+_{c,y}(x))",
        use="expected error reduction by entropy: the classic look-ahead for calibrated outputs",
    ),
    _row(
        name="expected_log_loss",
        formula="sum_y P(y|c) sum_x v sum_j q_j(x) log softmax(f+_{c,y}(x))_j",
        use="a better model, or labels, tell what the evaluation points should be",
    ),
    _row(
        name="expected_error",
        formula="sum_y P(y|c) sum_x v (max_j softmax(f+_{c,y}(x))_j - 1)",
        use="expected error reduction by the 0/1 loss: the goal is accuracy",
    ),
    _row(
        name="expected_brier",
        formula="-sum_y P(y|c) sum_x v sum_j p_j (1 - p_j), p = softmax f+_{c,y}(x)",
        use="expected error reduction by the Brier score, a proper score like entropy, but bounded",
    ),
    _row(
        name="label_flips",
        formula="sum_y P(y|c) sum_x v 1[argmax f+_{c,y}(x) != argmax f(x)]",
        use="how many predictions a label changes; many ties on small pools",
    ),
    _row(
        name="variance_reduction",
        formula="sum_x v S(x,c)^2 / (S(c,c) + lam_c)",
        use="the best choice for a regression, and for batches; reads no outputs",
    ),
    _row(
        name="epig",
        formula="-1/2 sum_x v log(1 - rho^2), rho^2 = S(x,c)^2 / ((S(c,c)+lam_c)(S(x,x)+lam))",
        use="information about the evaluation points: like variance_reduction, but a few uncertain "
        "ones weigh less",
        float32_limit=1e4,  # 1 - rho^2 of a point with itself is about ridge / variance
    ),
    _row(
        name="fisher_variance_reduction",
        formula="variance_reduction with v(x) = h(x), lam_c = lam / h(c), h = 1 - sum_j p_j^2",
        use="for classes, and for batches: variance where classes are open; of any kernel, and the "
        "quickest on disk and where processes share the pool",
        compiled="variance_reduction",
        fisher=True,
    ),
    Criterion(
        name="d_optimal",
        formula="log(1 + S(c,c) / lam_c); of a batch B: log det(I + D^-1 S(B,B))",
        needs=(),
        use="information about the whole model, whatever it is needed for: spreads, finds outliers",
        look_ahead=False,
        compiled="",
    ),
    _coverage(
        name="max_herding",
        formula="sum_x v max(0, k(x,c) - m(x)), m(x) = max k(x,l) of labelled and picked l",
        use="no or few labels: batches that stand for the pool; reads no outputs",
    ),
    _coverage(
        name="uncertainty_herding",
        formula="max_herding with v(x) U(x), U = 1 - (largest - second largest softmax(F / T))",
        use="any number of labels: covers where classes are open, the finer the more labels",
        uncertainty=True,
    ),
    _coverage(
        name="prob_cover",
        formula="max_herding with k(x,c) = 1[|x - c| < radius]",
        use="the first labels: the largest balls that are likely to hold one class",
        forms={"ball": "ball_coverage"},
    ),
    Criterion(
        name="fisher_herding",
        formula="A B^(1-w) H^(2w), A = fisher_variance_reduction with v / (S(x,x) + lam)",
        needs=("similarity", "radius", "temperature"),
        use="the best choice for classes, and for batches: shares of variances where classes are "
        "open (A), and many open points nearby (B, uncertainty_herding); the more alike all "
        "distances are (w), the more the entropy of c itself counts instead (H)",
        look_ahead=False,
        compiled="variance_reduction",
        moments=True,
        fisher=True,
        coverage=_SIMILARITIES,
        uncertainty=True,
    ),
)


class CriteriaTable(tuple[Criterion, ...]):
    """The rows (a tuple of `Criterion`); prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        width = max(len(row.name) for row in self) + 2
        for row in self:
            yield f"{row.name:<{width}}{row.formula}"
            for line in textwrap.wrap(row.use, 98 - width):
                yield " " * width + line
            if row.needs:
                yield " " * width + "reads " + ", ".join(row.needs)
        yield ""
        yield "x: evaluation points, v: their weights; c: candidate; y: its hypothetical label,"
        yield "P(y|c): its distribution; f: outputs of the network, F: after the labels so far,"
        yield "f+: after (c, y) as well; S: covariance, lam: ridge, lam_c: noise of c's label;"
        yield "p: class probabilities by f; D: noises of a batch; k: exp(-|x - c|^2 / radius^2) or"
        yield "their cosine, of features of length one, by the kernel before any label."


def criteria() -> CriteriaTable:
    """Return the table of criteria; printed, it tells what each computes and when to use it.

    The names are what `utilities` and `select` take; every utility is "larger = query first". For
    a matrix-valued kernel f+ is that of the k x k blocks, and the variance criteria are traces and
    log-determinants over k (docs/method.md, section 6).

    Examples
    --------
    >>> import ntkfast as nf
    >>> [row.name for row in nf.criteria() if not row.look_ahead]
    ['variance_reduction', 'epig', 'fisher_variance_reduction', 'd_optimal', 'max_herding',
     'uncertainty_herding', 'prob_cover', 'fisher_herding']
    """
    return CriteriaTable(_TABLE)


def find(name: str) -> Criterion:
    """Return the row of a criterion, or raise a ValueError that lists the names."""
    for row in _TABLE:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in _TABLE)
    raise ArgumentValueError("criterion", f"unknown criterion {name!r}; known: {known}")


def automatic(*, classes: bool, covers: bool) -> str:
    """Return the name of the criterion that "auto" stands for: the best for these outputs.

    For classes with squared loss too (docs/evidence.md). `covers`: whether coverage can be
    computed, which needs a scalar kernel, and features in the memory of one process to be quick.
    """
    if not classes:
        return "variance_reduction"
    return "fisher_herding" if covers else "fisher_variance_reduction"
