"""What can go wrong with any device."""

from __future__ import annotations


class DeviceError(RuntimeError):
    """A device could not do what was asked; after it, the next call works."""


class UnknownDevice(ValueError):
    """No device has that name."""


class DeviceUnavailable(DeviceError):
    """The device exists in name, but cannot be used here."""


class BufferSizeError(DeviceError):
    """A buffer is too small, or a view of it is out of bounds or misaligned."""


class LaunchFailed(DeviceError):
    """A launch did not complete; its outputs must not be used."""
