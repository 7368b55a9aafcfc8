"""Remote storage is refused before a start where nothing here can reach it."""

from __future__ import annotations

import pytest

from orchestrator.spec.remote import require_file_system


@pytest.mark.parametrize("url", ["file:///mnt/backup", "memory://bucket"])
def test_what_is_installed_is_taken(url: str) -> None:
    require_file_system(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("backup", "expected a URL such as 's3://bucket/prefix' or 'gs://bucket', found 'backup'"),
        ("s3://", "expected a URL"),
        ("s4://bucket", "no file system is known as 's4'"),
    ],
)
def test_other_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_file_system(url)


@pytest.mark.parametrize(("url", "package"), [("s3://bucket", "s3fs"), ("gs://bucket", "gcsfs")])
def test_a_missing_package_is_named(url: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(ValueError, match=f"(?i)install {package}"):
            require_file_system(url)
    else:
        pytest.skip(f"{package} is installed here")
