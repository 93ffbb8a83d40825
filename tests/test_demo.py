"""The demo, in little time, where the images are and where they are not."""

import re

import pytest
from forked_scripts import PACKAGE, run_script
from imported_scripts import EXAMPLES

DEMO = EXAMPLES / "demo.py"


@pytest.fixture
def offline(tmp_path):
    """An environment without images and without a network."""
    # Nothing listens on port 9 of this machine: every download fails at once.
    proxy = "http://127.0.0.1:9"
    return {
        "MEDMNIST_ROOT": str(tmp_path / "empty"),
        # medmnist's own cache is in the home folder.
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "",
        "no_proxy": "",
    }


def test_the_demo_runs_on_digits_where_there_is_no_network(offline, tmp_path):
    picture = tmp_path / "demo.png"
    shown = run_script(PACKAGE, DEMO, "--seconds", "1", "--output", picture, **offline)
    assert shown.code == 0, shown.errors
    assert "so this is on scikit-learn's digits" in shown.output.splitlines()[1]
    assert re.search(r"accuracy [01]\.\d{3}, AUC [01]\.\d{3}, in ", shown.output)
    assert "coverage  accuracy" in shown.output
    assert "100%" in shown.errors
    # A fast machine may see all images that pictures need.
    advice = (
        r"the best ones take about \d+ minutes here: --seconds \d+"
        r"|more of it hardly makes them better"
    )
    assert re.search(advice, shown.output)
    assert picture.read_bytes().startswith(b"\x89PNG")
