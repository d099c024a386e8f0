"""The version, and the check that the installed `sie-sdk` is the one of this project: another has the same name."""

import sie_sdk

__version__ = "1.0.0+self.1"

if (found := getattr(sie_sdk, "__version__", "without a version")) != __version__:
    raise ImportError(
        f"sie-haystack {__version__} requires sie-sdk {__version__}, but {sie_sdk.__file__} is sie-sdk {found}. "
        "Another project publishes a sie-sdk. Install both packages from the same clone: "
        "pip install ./packages/sie-sdk ./packages/sie-haystack",
        name="sie_sdk",
        path=sie_sdk.__file__,
    )
