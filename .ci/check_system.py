"""Before anything is installed: is this Python one that headlift's packages exist for, and are the system libraries
there that a wheel of OpenCV or MediaPipe loads? Prints the command that mends it and fails, or says nothing."""

import ctypes.util
import sys

LIBRARIES = {"GL": "libgl1", "glib-2.0": "libglib2.0-0", "EGL": "libegl1"}


def main() -> int:
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        print(
            f"headlift needs Python 3.11 or 3.12 (MediaPipe has no wheels for others), not {sys.version.split()[0]}.\n"
            "Name one:  make PYTHON=/path/to/python3.12 setup",
            file=sys.stderr,
        )
        return 1
    if not sys.platform.startswith("linux"):
        return 0
    missing = [package for name, package in LIBRARIES.items() if ctypes.util.find_library(name) is None]
    if missing:
        print(
            "headlift needs system libraries that are not here. Install them:\n"
            f"  sudo apt-get install -y {' '.join(missing)}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
