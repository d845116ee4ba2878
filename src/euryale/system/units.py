"""Numbers with their unit, for messages and tables."""


def gigabytes(size: int) -> str:
    """1 GB is 10^9 bytes."""
    return f"{size / 1e9:.2f} GB" if size < 10e9 else f"{size / 1e9:.1f} GB"
