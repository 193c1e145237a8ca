"""What the readers share: runs of the program that end with its report."""
import json
import subprocess


def report_of(binary, *words):
    """Runs `binary words`, outputs replaced, and returns the report. The run must succeed."""
    command = [str(word) for word in (binary, *words, "--force", "-q", "--report", "-")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, (command, run.stderr)
    return json.loads(run.stdout)
