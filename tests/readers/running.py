"""What the readers share: the test data, and runs of the program that end with its report."""
import json
import os
import subprocess
import sys


def test_data():
    """The folder MCOMPRESS_TEST_DATA; ends with 77 (skipped) where it is not set."""
    data = os.environ.get("MCOMPRESS_TEST_DATA")
    if not data:
        print("MCOMPRESS_TEST_DATA is not set")
        sys.exit(77)
    return data


def report_of(binary, *words):
    """Runs `binary words`, outputs replaced, and returns the report. The run must succeed."""
    command = [str(word) for word in (binary, *words, "--force", "-q", "--report", "-")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, (command, run.stderr)
    return json.loads(run.stdout)
