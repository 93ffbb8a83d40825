"""The demo, in little time, where the images are and where they are not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parent.parent / "examples" / "demo.py"


@pytest.fixture
def offline(tmp_path):
    """An environment without images and without a network."""
    # Nothing listens on port 9 of this machine: every download fails at once.
    proxy = "http://127.0.0.1:9"
    return {
        **os.environ,
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
    shown = subprocess.run(
        [sys.executable, str(DEMO), "--seconds", "1", "--output", str(picture)],
        env=offline,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "so this is on scikit-learn's digits" in shown.stdout.splitlines()[1]
    assert re.search(r"accuracy [01]\.\d{3}, AUC [01]\.\d{3}, in ", shown.stdout)
    assert "coverage  accuracy" in shown.stdout
    assert "100%" in shown.stderr
    # A fast machine may see all images that pictures need.
    advice = (
        r"the best ones take about \d+ minutes here: --seconds \d+"
        r"|more of it hardly makes them better"
    )
    assert re.search(advice, shown.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG")
