"""What to install, by distribution. Sources: the package indexes of the distributions (autumn 2026)
and the README of amd/xdna-driver."""

from __future__ import annotations

FROM_SOURCE = "build https://github.com/amd/xdna-driver, which brings XRT"
UBUNTU_PPA = "sudo add-apt-repository ppa:amd-team/xrt"
FIRST_UBUNTU_WITH_XRT = (26, 4)
FIRST_FEDORA_WITH_XRT = (46,)

_KERNEL = {
    "ubuntu": "sudo apt install linux-generic-hwe-24.04, or amdxdna-dkms of ppa:amd-team/xrt",
    "arch": "sudo pacman -Syu",
    "fedora": "sudo dnf upgrade",
    "debian": "install a kernel from backports",
}
_FIRMWARE = {
    "ubuntu": "sudo apt install --reinstall linux-firmware",
    "debian": "sudo apt install firmware-linux",
    "arch": "sudo pacman -S linux-firmware",
    "fedora": "sudo dnf upgrade linux-firmware",
}
LIMITS = (
    "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/99-amdxdna.conf, and log in "
    "again"
)
FEDORA_LIMITS = "; on Fedora also LimitMEMLOCK=infinity by: sudo systemctl edit user@.service"


def install_xrt(distribution: str, version: str) -> str:
    """How to get XRT with its plugin for NPUs and its Python binding.

    >>> install_xrt("arch", "")
    'sudo pacman -S xrt xrt-plugin-amdxdna'
    """
    if distribution == "ubuntu":
        if _numbers(version) >= FIRST_UBUNTU_WITH_XRT:
            packages = "libxrt2 libxrt-npu2 libxrt-utils libxrt-utils-npu python3-xrt"
            return f"sudo apt install {packages}"
        packages = "libxrt-npu2 libxrt-utils libxrt-utils-npu amdxdna-dkms python3-xrt"
        return f"{UBUNTU_PPA} && sudo apt install {packages}"
    if distribution == "fedora" and _numbers(version) >= FIRST_FEDORA_WITH_XRT:
        return "sudo dnf install xrt python3-xrt"
    return "sudo pacman -S xrt xrt-plugin-amdxdna" if distribution == "arch" else FROM_SOURCE


def newer_kernel(distribution: str) -> str:
    return _KERNEL.get(distribution, "install Linux 6.14 or later")


def firmware(distribution: str) -> str:
    return _FIRMWARE.get(distribution, "install the package linux-firmware")


def memlock(distribution: str) -> str:
    return LIMITS + (FEDORA_LIMITS if distribution == "fedora" else "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
