"""The table of tests/mutation fits the source; running it all is for people, as its --help says."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def protections():
    specification = importlib.util.spec_from_file_location("protections", HERE / "protections.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["protections"] = module
    specification.loader.exec_module(module)
    return module


def test_every_row_still_fits_the_source_and_changes_it_into_python(protections):
    """Rows that no longer fit raise NotThere; an element more or less is still a program."""
    rows = protections.all_mutations()
    assert len(rows) > 400
    for row in rows:
        source = protections.source_of(row.file)
        changed = row.applied(source)
        assert changed != source
        ast.parse(changed)


def test_every_list_of_the_policy_and_every_open_without_links_is_in_the_table(protections):
    assert protections.unlisted() == []


def test_every_test_that_the_table_names_exists(protections):
    named = {test for row in protections.all_mutations() for test in row.tests}
    for test in named:
        file, _, name = test.partition("::")
        assert (HERE.parent / file).is_file(), file
        assert not name or f"def {name.partition('[')[0]}(" in (HERE.parent / file).read_text(), (
            name
        )


def test_the_table_can_be_shown_and_narrowed():
    def rows(*words):
        done = subprocess.run(
            [sys.executable, HERE / "mutation", "--list", *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[:-1]

    everything = rows()
    keys = rows("-k", "KEYCTL")
    assert len(keys) == 1 and "claudebox/sandbox/seccomp.py" in keys[0]
    shards = [rows("--shard", f"{index}/3") for index in (1, 2, 3)]
    assert sorted(line for shard in shards for line in shard) == sorted(everything)
