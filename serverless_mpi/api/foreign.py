"""Memory that other libraries describe: DLPack tensors and CUDA arrays.

A device's memory can be communicated where this process can read it (managed or pinned memory).
Where it cannot, BufferError is raised and nothing is touched. The memory is borrowed: the caller
holds the object that owns it.

References
----------
DLPack, https://dmlc.github.io/dlpack/latest/c_api.html. CUDA array interface,
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from typing import Any

from serverless_mpi.api.addresses import at_address, native

_CPU = 1  # DLDeviceType.kDLCPU
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_FLOAT = 2
_KINDS = {0: "i", 1: "u", _FLOAT: "f", 5: "c", 6: "b"}  # DLDataTypeCode -> NumPy's kind


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = (
    ctypes.c_void_p,
    [ctypes.py_object, ctypes.c_char_p],
)
_capsule_is = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is.restype, _capsule_is.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]


def as_bytes(obj: Any, readonly: bool) -> tuple[memoryview, str | None]:
    """Return the bytes of an object that describes its memory, and the format of its numbers.

    Parameters
    ----------
    obj
        An object with `__dlpack__` or `__cuda_array_interface__`.
    readonly
        Whether the memory is only read.

    Raises
    ------
    BufferError
        The memory cannot be read here, is not contiguous, or is read-only though it is to be
        written.
    TypeError
        The object describes no memory.
    """
    if hasattr(obj, "__dlpack__"):
        address, nbytes, fixed, code, device = _of_dlpack(obj)
    elif hasattr(obj, "__cuda_array_interface__"):
        address, nbytes, fixed, code = _of_cuda(obj)
        device = True
    else:
        raise TypeError(f"message: expecting buffer or list/tuple, not {type(obj).__name__}")
    if fixed and not readonly:
        raise BufferError(f"the {type(obj).__name__} to receive into is read-only")
    if device and nbytes and not _readable(address):
        raise BufferError(
            f"the memory of the {type(obj).__name__} is on a device, where this process cannot read"
            " it; copy it to the host"
        )
    view = at_address(address, nbytes)
    return (view.toreadonly() if fixed else view), code


def _readable(address: int) -> bool:
    """Whether this process may read at an address.

    The kernel reads the byte, so that a wrong address is an error and not a crash.
    """
    byte = ctypes.create_string_buffer(1)
    here = _Vector(ctypes.cast(byte, ctypes.c_void_p), 1)
    there = _Vector(address, 1)
    read = _reader()
    return read is not None and bool(
        read(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == 1
    )


@functools.cache
def _reader() -> Any:
    """The kernel's call, or None where it is not Linux."""
    return getattr(ctypes.CDLL(None), "process_vm_readv", None)


def _of_dlpack(obj: Any) -> tuple[int, int, bool, str | None, bool]:
    """(address, bytes, whether read-only, format, whether on a device) of a DLPack tensor."""
    device, number = obj.__dlpack_device__()
    if not isinstance(device, int):
        raise TypeError("__dlpack_device__ does not return a kind of device")
    if not isinstance(number, int):
        raise TypeError("__dlpack_device__ does not return the number of a device")
    stream = {} if device == _CPU else {"stream": -1}
    try:
        capsule, name = (
            obj.__dlpack__(**stream, max_version=(1, 0), copy=False),
            b"dltensor_versioned",
        )
    except TypeError:  # before DLPack 1.0
        capsule, name = obj.__dlpack__(**stream), b"dltensor"
    if not _capsule_is(capsule, name):
        raise BufferError("dlpack: invalid capsule object")
    pointer = _capsule_pointer(capsule, name)
    fixed = False
    if name == b"dltensor":
        tensor = _Tensor.from_address(pointer)
    else:
        versioned = _Versioned.from_address(pointer)
        if versioned.major != 1:
            raise BufferError(f"dlpack: version {versioned.major} of the format is not supported")
        tensor, fixed = versioned.tensor, bool(versioned.flags & _READ_ONLY)
    itemsize = (tensor.bits * tensor.lanes + 7) // 8
    if tensor.ndim < 0 or (tensor.ndim and not tensor.shape):
        raise BufferError("dlpack: the tensor has no shape")
    shape = tensor.shape[: tensor.ndim] if tensor.ndim else []
    if any(length < 0 for length in shape):
        raise BufferError(f"dlpack: the shape {shape} is negative")
    if tensor.strides and tensor.ndim and not _contiguous(shape, tensor.strides[: tensor.ndim], 1):
        raise BufferError("dlpack: the tensor is not contiguous")
    count = 1
    for length in shape:
        count *= length
    kind = (
        _KINDS.get(tensor.code)
        if tensor.lanes == 1
        else "c"
        if (tensor.code, tensor.lanes) == (_FLOAT, 2)
        else None
    )
    code = None if kind is None else f"{kind}{itemsize}"
    # the tensor's memory lives as long as obj, which the caller holds
    return (tensor.data or 0) + tensor.offset, count * itemsize, fixed, code, device != _CPU


def _of_cuda(obj: Any) -> tuple[int, int, bool, str | None]:
    """(address, bytes, whether read-only, format) of a CUDA array."""
    facts = obj.__cuda_array_interface__
    if not isinstance(facts, dict):
        raise TypeError("__cuda_array_interface__ is not a dictionary")
    data, typestr, shape = facts["data"], facts["typestr"], facts["shape"]
    strides, described, mask = facts.get("strides"), facts.get("descr"), facts.get("mask")
    if not isinstance(data, tuple) or not isinstance(typestr, str) or not isinstance(shape, tuple):
        raise TypeError("__cuda_array_interface__: data and shape are tuples, typestr is text")
    if strides is not None and not isinstance(strides, tuple):
        raise TypeError("__cuda_array_interface__: strides are a tuple")
    if described is not None and not isinstance(described, list):
        raise TypeError("__cuda_array_interface__: descr is a list")
    address, fixed = data
    itemsize = int(typestr[2:])
    size = 1
    for length in shape:
        size *= length
    if typestr[0] not in "<>|":
        raise BufferError(
            f"__cuda_array_interface__: typestr {typestr!r} has an unknown byte order"
        )
    code = native(typestr).lstrip("|")
    if mask is not None:
        raise BufferError("__cuda_array_interface__: masked arrays cannot be communicated")
    if size < 0:
        raise BufferError(f"__cuda_array_interface__: shape {shape} is negative")
    if strides is not None and not _contiguous(shape, strides, itemsize):
        raise BufferError(
            f"__cuda_array_interface__: an array of shape {shape} with strides {strides} is not"
            " contiguous"
        )
    if described is not None and (len(described) != 1 or described[0] != ("", typestr)):
        warnings.warn(
            "__cuda_array_interface__: ignoring 'descr' key", RuntimeWarning, stacklevel=2
        )
    known = code[0] in "biufc"
    return address or 0, size * itemsize, bool(fixed), code if known else None


def _contiguous(shape: Any, strides: Any, itemsize: int) -> bool:
    """Whether an array is one run of memory, its first or its last dimension the fastest."""
    for order in (range(len(shape)), range(len(shape) - 1, -1, -1)):
        step = itemsize
        for dimension in order:
            if shape[dimension] > 1 and strides[dimension] != step:
                break
            step *= shape[dimension]
        else:
            return True
    return False
