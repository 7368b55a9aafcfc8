"""URLs of remote storage: whether what reads and writes them is installed, asked before anything starts."""

from __future__ import annotations


def require_file_system(url: str) -> None:
    """Refuse a URL that fsspec cannot reach here.

    Raises:
        ValueError: No URL, a protocol that fsspec does not know, or one whose package is not installed.
    """
    # Imported here: most jobs have no remote storage, and ``validate`` is to be quick.
    from fsspec import get_filesystem_class

    protocol, separator, path = url.partition("://")
    if not (protocol and separator and path):
        raise ValueError(
            f"remote: expected a URL such as 's3://bucket/prefix' or 'gs://bucket', found '{url}'"
        )
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        # fsspec's message names the package, for example: Install s3fs to access S3.
        raise ValueError(f"remote '{url}': {error}, in the environment of the workers, too") from error
    except ValueError as error:
        raise ValueError(
            f"remote '{url}': no file system is known as '{protocol}'; expected one of fsspec's protocols,"
            " such as 's3', 'gs', 'abfs' or 'file'"
        ) from error
