"""Source text that applications written by tests have in common; they import `time` and call their app `app`."""

SPIN = """
@app.task
def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
"""
