"""Runs the checks of a client one by one and says how each ended."""

import traceback


def run(checks):
    """How many have failed is printed; whether any has is the answer."""
    failed = 0
    for check in checks:
        try:
            check()
            print(f"ok      {check.__name__}")
        except Exception:
            failed += 1
            print(f"FAILED  {check.__name__}")
            traceback.print_exc()
    print(f"{len(checks) - failed} passed, {failed} failed")
    return failed > 0
