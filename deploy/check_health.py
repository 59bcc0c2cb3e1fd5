"""`check_health.py HOST:PORT [SERVICE]`: exit code 0 when the service takes calls.

Without a service it asks for all of them: NOT_SERVING until a release is active.
"""

import sys

import keek

_TIMEOUT_S = 3.0


def main(target: str, service: str = "") -> int:
    """Asks grpc.health.v1 once, without retries: whoever calls this repeats it."""
    with keek.Client(target, retry=None) as client:
        try:
            serving = client.check_health(service, timeout_s=_TIMEOUT_S)
        except keek.CallError as error:
            print(f"{target} {service}: {error}", file=sys.stderr)
            return 1
    print(f"{target} {service}: {'SERVING' if serving else 'NOT_SERVING'}")
    return 0 if serving else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
