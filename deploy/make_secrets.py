"""Makes the passwords of docker-compose.yml, once: what is there stays. Its two arguments are directories.

    make_secrets.py FOR_SPANHOUSE FOR_CLICKHOUSE

The first gets `clickhouse-password`, the second `secrets.xml` with that password's hash, and with the secret by which
the nodes of a cluster trust each other. Each directory is a volume that only those mount for whom it is.
"""

import hashlib
import secrets
import sys
from pathlib import Path


def main(for_spanhouse: Path, for_clickhouse: Path) -> None:
    """Write what is missing. A password that was put there by hand is used as it is."""
    password = for_spanhouse / "clickhouse-password"
    if not password.exists():
        write(password, secrets.token_urlsafe(32))
    digest = hashlib.sha256(password.read_text().strip().encode()).hexdigest()
    included = for_clickhouse / "secrets.xml"
    if not included.exists() or digest not in included.read_text():
        cluster = secrets.token_urlsafe(32)
        write(
            included,
            f"<clickhouse><spanhouse_password_sha256>{digest}</spanhouse_password_sha256>"
            f"<cluster_secret>{cluster}</cluster_secret></clickhouse>\n",
        )


def write(path: Path, text: str) -> None:
    """Whole or not at all, and readable for every user of a container that mounts it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.chmod(0o444)
    temporary.replace(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
