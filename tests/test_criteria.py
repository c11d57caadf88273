"""One list of criteria: whoever repeats it has the same names in the same order."""

import re
from pathlib import Path

import numpy as np
import pytest
import reference
from data import oracle
from problems import DATA, GOLDEN

import ntkfast as nf
from ntkfast import ops

ROOT = Path(__file__).parents[1]
NAMES = [row.name for row in nf.criteria()]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def section(name, heading):
    """What stands below a heading of a document, up to the next one."""
    return re.split(r"^#+ ", text(name).split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]


def first_cells(table):
    """The names, in order, that the first cells of a table's rows hold in code font."""
    rows = re.findall(r"^\| (`[^|]*) \|", table, flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+\*?)`", row)]


def test_compiled_and_table():
    """The compiled list, of which the table's further rows are uses with other weights."""
    own = [row.name for row in nf.criteria() if row.compiled == row.name]
    assert [*own, *reference.COVERAGE] == list(ops.criteria()) == list(reference.criteria())
    assert NAMES[: len(own)] == own
    used = [name for row in nf.criteria() for name in (row.compiled, *row.coverage.values())]
    assert set(used) - {""} == set(ops.criteria())
    for name, traits in ops.criteria().items():
        assert ("covered" in traits) == (name in reference.COVERAGE)


def test_oracle():
    """One order; of the first criteria the utilities are stored with the golden problems."""
    assert list(ops.criteria()) == [*oracle.CRITERIA, *reference.COVERAGE]
    for name in GOLDEN:
        with np.load(DATA / f"{name}.npz") as archive:
            stored = [key.removeprefix("u_") for key in archive.files if key.startswith("u_")]
        assert stored == [c for c in oracle.CRITERIA if c in stored], name


def test_method():
    assert first_cells(section("docs/method.md", "4. Criteria (larger = query first)")) == NAMES
    blocks = first_cells(section("docs/method.md", "6. Matrix-valued kernels"))
    meant = [n for b in blocks for n in NAMES if re.fullmatch(b.replace("*", ".*"), n)]
    assert meant == [row.name for row in nf.criteria() if not row.coverage]


DOCUMENTS = {
    "README.md": text("README.md"),
    "CHANGELOG.md": re.split(r"^## ", text("CHANGELOG.md"), flags=re.MULTILINE)[1],  # the latest
    "docs/method.md": text("docs/method.md"),
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names(document):
    """Whatever a document calls like a criterion is one."""
    like = r"`((?:expected|fisher|prob)_\w+|\w+_(?:reduction|flips|herding|optimal)|\w*moc|epig)`"
    names = set(re.findall(like, DOCUMENTS[document]))
    assert names <= set(NAMES)
    assert names or document == "CHANGELOG.md"


def test_errors():
    """A name that is none: the error lists all, in order."""
    f = np.eye(3)
    post = nf.Posterior.from_features(f, f, None, None, None)
    with pytest.raises(ValueError, match="known: " + ", ".join(NAMES) + "$"):
        nf.utilities(post, "nope")


def test_what_a_batch_from_disk_holds():
    """The command line reads features into memory for them; coverage of a product counts, too."""
    held = {row.name for row in nf.criteria() if row.holds_evaluation}
    moments = {row.name for row in nf.criteria() if row.moments and not row.coverage}
    assert held == set(NAMES) - moments - {"d_optimal"}
