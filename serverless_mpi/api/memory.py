"""Memory: `MPI.buffer`, addresses, and the bytes of any object that has some, without a copy.

Buffer specifications of calls are in buffers.py, memory that other libraries describe (DLPack, CUDA
arrays) in foreign.py.

Pitfall: a view is borrowed. Whoever keeps it must keep the object that owns the memory.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

import numpy as np

from serverless_mpi.api import foreign
from serverless_mpi.api.addresses import at_address as at_address
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.errors import ERR_ARG, ERR_NO_MEM, MPIException

_NO_BYTES = memoryview(bytearray())
CASTABLE = frozenset("?bBhHiIlLqQfd")  # formats that memoryview.cast turns to bytes
_PLAIN = frozenset((np.ndarray, array, bytearray, bytes))  # exactly these, not subclasses


class _Constant:
    """A constant in a buffer's place; it equals its number."""

    __slots__ = ()
    _number: int
    _label: str

    def __repr__(self) -> str:
        return self._label

    def __reduce__(self) -> str:
        return self._label

    def __int__(self) -> int:
        return self._number

    def __bool__(self) -> bool:
        return self._number != 0

    def __hash__(self) -> int:
        return hash(self._number)

    def __eq__(self, other: object) -> bool:
        return (
            self._number == int(other) if isinstance(other, (int, type(self))) else NotImplemented
        )

    def __ne__(self, other: object) -> bool:
        return (
            self._number != int(other) if isinstance(other, (int, type(self))) else NotImplemented
        )

    def __buffer__(self, flags: int, /) -> memoryview:
        return memoryview(b"")


class BottomType(_Constant):
    """The type of BOTTOM."""

    __module__ = "serverless_mpi.MPI"
    __slots__ = ()
    _number, _label = 0, "BOTTOM"

    def __index__(self) -> int:
        return 0


class InPlaceType(_Constant):
    """The type of IN_PLACE."""

    __module__ = "serverless_mpi.MPI"
    __slots__ = ()
    _number, _label = -1, "IN_PLACE"


class BufferAutomaticType(_Constant):
    """The type of BUFFER_AUTOMATIC."""

    __module__ = "serverless_mpi.MPI"
    __slots__ = ()
    _number, _label = -2, "BUFFER_AUTOMATIC"


BOTTOM = BottomType()
IN_PLACE = InPlaceType()
BUFFER_AUTOMATIC = BufferAutomaticType()


class buffer(np.ndarray[Any, Any]):
    """A run of bytes: a view of an object's memory, memory of its own, or memory at an address.

    Attributes
    ----------
    address
        Of the first byte.
    obj
        The object whose memory it is, or None.
    nbytes
        Number of bytes.
    readonly
        Whether the bytes cannot be written.
    format, itemsize
        "B" and 1, as of a memoryview of bytes.
    """

    __module__ = "serverless_mpi.MPI"
    _obj: Any = None
    _device = False  # on a GPU: the address is known, the bytes are not to be touched

    def __new__(cls, *arguments: Any) -> buffer:
        if not arguments:
            return cls._over(np.empty(0, np.uint8), None)
        (buf,) = arguments
        return cls._viewing(buf, True)

    @classmethod
    def _over(cls, array: np.ndarray[Any, Any], obj: Any) -> buffer:
        """A buffer of the bytes of an array, which are the memory of `obj`."""
        self = array.view(cls)
        self._obj = obj
        return self

    @staticmethod
    def allocate(nbytes: int, clear: bool = False) -> buffer:
        """Allocate memory.

        Parameters
        ----------
        nbytes
            Number of bytes.
        clear
            Whether they are 0; undefined otherwise.
        """
        if not hasattr(nbytes, "__index__"):
            raise TypeError(f"a number of bytes is an integer, not {type(nbytes).__name__}")
        if nbytes < 0:
            raise ValueError(f"a number of bytes cannot be {nbytes}")
        own = np.zeros(nbytes, np.uint8) if clear else np.empty(nbytes, np.uint8)
        return buffer._over(own, own)

    @staticmethod
    def frombuffer(obj: Any, readonly: bool = False) -> buffer:
        """Return a view of an object's memory, writable unless `readonly`.

        Parameters
        ----------
        obj
            Object whose memory is viewed without a copy; the buffer keeps a reference to it.
        readonly
            Whether the view is read-only.

        Raises
        ------
        TypeError
            `obj` is None.
        """
        self = buffer._viewing(obj, readonly)
        if readonly:
            self.flags.writeable = False
        return self

    @classmethod
    def _viewing(cls, obj: Any, readonly: bool) -> buffer:
        """A view of the memory of an object."""
        if obj is None:
            raise TypeError("None has no memory")
        view, _ = as_bytes(obj, readonly)
        self = cls._over(np.frombuffer(view, np.uint8), obj)
        self._device = on_device(obj)
        return self

    @staticmethod
    def fromaddress(address: int, nbytes: int, readonly: bool = False) -> buffer:
        """Return a view of memory at an address, which must stay valid while the buffer is used.

        Parameters
        ----------
        address
            Address of the first byte.
        nbytes
            Number of bytes.
        readonly
            Whether the buffer is read-only.

        Raises
        ------
        ValueError
            `nbytes` is negative, or is not 0 at address 0.
        """
        if nbytes < 0:
            raise ValueError(f"a number of bytes cannot be {nbytes}")
        if not address and nbytes:
            raise ValueError(f"there are no {nbytes} bytes at address 0")
        self = buffer._over(np.frombuffer(at_address(address, nbytes), np.uint8), None)
        self.flags.writeable = not readonly
        return self

    def cast(self, format: str, shape: Any = None) -> memoryview:
        """Return the bytes as numbers of a format of the struct module, in a shape.

        Parameters
        ----------
        format
            Format of a number, as in the struct module.
        shape
            Shape of the result; None for one dimension.

        Returns
        -------
        memoryview
            A view of the memory, not a copy.

        Raises
        ------
        BufferError
            The memory is on a device.
        """
        view = self._touch()
        return view.cast(format) if shape is None else view.cast(format, shape)  # type: ignore[call-overload,no-any-return]

    def tobytes(self, order: str | None = None) -> bytes:
        """Return a copy of the bytes.

        Parameters
        ----------
        order
            Not used.

        Raises
        ------
        BufferError
            The memory is on a device.
        """
        return self._touch().tobytes()

    def toreadonly(self) -> buffer:
        """Return a read-only view of the memory."""
        self._touch()
        new = buffer._over(np.asarray(self), self._obj)
        new.flags.writeable = False
        return new

    def release(self) -> None:
        """Release the memory: the buffer is empty afterwards."""
        self.__setstate__((1, (0,), np.dtype(np.uint8), False, b""))  # type: ignore[arg-type]
        self.flags.writeable = True
        self._obj = None

    def _touch(self) -> memoryview:
        """The bytes; BufferError if they are on a device."""
        if self._device:
            raise BufferError("the memory is on a device and cannot be touched from here")
        return self.data

    address = property(
        lambda self: (
            0 if not self.size and self._obj is None else int(self.__array_interface__["data"][0])
        ),
        doc="Of the first byte.",
    )
    obj = property(lambda self: self._obj, doc="Whose memory it is, or None.")
    readonly = property(
        lambda self: bool(not self.flags.writeable and self.size),
        doc="Whether it cannot be written.",
    )
    format = property(lambda self: "B", doc="Its format in the struct module.")

    def __getitem__(self, item: Any) -> Any:
        self._touch()
        if isinstance(item, slice):
            return buffer._over(np.asarray(self)[_plain(item)], self._obj)
        return int(np.asarray(self)[_integer(item)])

    def __setitem__(self, item: Any, value: Any) -> None:
        self._touch()
        if not self.flags.writeable:
            raise TypeError("memory buffer is read-only")
        array = np.asarray(self)
        if not isinstance(item, slice):
            array[_integer(item)] = value
            return
        part = array[_plain(item)]
        if isinstance(value, int):
            part[...] = value
            return
        view, _ = as_bytes(value, True)
        if view.nbytes != part.nbytes:
            raise ValueError(f"{view.nbytes} bytes do not fill {part.nbytes}")
        part[...] = np.frombuffer(view, np.uint8)

    def __delitem__(self, item: Any) -> None:
        raise NotImplementedError("bytes of memory cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __bool__(self) -> bool:
        return self.size > 0

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<serverless_mpi.MPI.buffer of {self.size} bytes at {self.address:#x}>"

    __str__ = __repr__


memory = buffer


def _plain(item: slice) -> slice:
    """A slice without a step; IndexError for another one."""
    if item.step not in (None, 1):
        raise IndexError("a slice of memory has no step")
    return item


def _integer(item: Any) -> int:
    """An index as an int; TypeError for anything else."""
    if not hasattr(item, "__index__"):
        raise TypeError("an index is an integer or a slice")
    return int(item.__index__())


def on_device(obj: Any) -> bool:
    """Return whether the object states that its memory is on a GPU.

    Parameters
    ----------
    obj
        Any object; only its attributes for DLPack and CUDA are read.
    """
    if isinstance(obj, (bytes, bytearray, memoryview, np.ndarray)):
        return False
    if hasattr(obj, "__dlpack_device__"):
        return bool(obj.__dlpack_device__()[0] != 1)
    return hasattr(obj, "__cuda_array_interface__")


def as_bytes(obj: Any, readonly: bool) -> tuple[memoryview, str | None]:
    """Return the bytes of an object without a copy, and the format of its numbers.

    Parameters
    ----------
    obj
        An object with the buffer protocol, DLPack, or the CUDA array interface; None and constants
        have no bytes.
    readonly
        Whether the bytes are only read.

    Returns
    -------
    tuple
        A view of format "B", borrowed from `obj`; and the format in the struct module or the array
        interface, None for plain bytes.

    Raises
    ------
    BufferError
        Not contiguous, or not writable though it is to be written.
    TypeError
        It has no memory.
    """
    if obj is None:
        return _NO_BYTES, None
    if isinstance(obj, np.ndarray):
        view, code = _of_array(obj)
    else:
        try:
            view = memoryview(obj)
        except TypeError:
            if isinstance(obj, _Constant):
                return _NO_BYTES, None
            view, code = foreign.as_bytes(obj, readonly)
        else:
            view, code = _of_view(view)
    if view.readonly and not readonly and view.nbytes:
        raise BufferError(f"the {type(obj).__name__} to receive into is read-only")
    return view, code


def numbers(obj: object, readonly: bool) -> memoryview | None:
    """Return a view of contiguous numbers in this machine's order, or None of anything else.

    Nearly all that programs send is such, and needs no datatype to be looked at.

    Parameters
    ----------
    obj
        Object to view, without a copy.
    readonly
        Whether the bytes are only read; if not, the result is None for read-only memory.
    """
    if type(obj) in _PLAIN:
        try:
            view = memoryview(obj)  # type: ignore[arg-type]
        except (ValueError, BufferError):  # such as an array of dates
            return None
        if (
            view.format in CASTABLE
            and view.nbytes
            and view.c_contiguous
            and (readonly or not view.readonly)
        ):
            return view
    return None


def _of_array(array: np.ndarray[Any, Any]) -> tuple[memoryview, str | None]:
    """The bytes and the format of an array; BufferError unless it is contiguous."""
    dtype = array.dtype
    char = dtype.char
    if char in CASTABLE and dtype.isnative:
        code = char
    elif dtype.kind in "SU" and dtype.isnative:
        width, letter = (1, "s") if dtype.kind == "S" else (4, "w")
        code = f"{dtype.itemsize // width}{letter}"
    else:
        code = char if dtype.isnative else dtype.str
    if isinstance(array, buffer):
        code = "B"
    if not array.size:
        return _NO_BYTES, code
    if not array.flags.c_contiguous:
        if not array.flags.f_contiguous:
            raise BufferError(
                f"an array with strides {array.strides} is not contiguous;"
                " send numpy.ascontiguousarray(array)"
            )
        array = array.T
    if char in CASTABLE and dtype.isnative:
        # not `array.data`, which is an array if this one is masked
        return memoryview(array).cast("B"), code  # type: ignore[arg-type]
    if dtype.hasobject:
        raise BufferError(
            "an array of Python objects has no bytes to send; use the lower-case call"
        )
    if dtype.kind in "mM":
        raise BufferError(
            f"an array of {dtype} is not sent; send array.view('i8'), and say what it means"
        )
    return np.asarray(array).reshape(-1).view(np.uint8).data, code


def _of_view(view: memoryview) -> tuple[memoryview, str | None]:
    """The bytes and the format of a memoryview; BufferError unless it is contiguous."""
    code = view.format
    if not view.contiguous:
        raise BufferError(f"a buffer with strides {view.strides} is not contiguous")
    if not view.nbytes:
        return _NO_BYTES, code
    if not view.c_contiguous:
        view = memoryview(np.asarray(view).T)
    if code in CASTABLE or code == "c":
        return view.cast("B"), code
    return np.asarray(view).reshape(-1).view(np.uint8).data, code


def address_of(view: memoryview) -> int:
    """Return the address of the first byte of a view that has one.

    Parameters
    ----------
    view
        View of contiguous bytes, not empty.
    """
    if not view.readonly:  # a sixth of the time of NumPy's interface
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address


def Alloc_mem(size: int, info: Info = INFO_NULL) -> buffer:
    """Allocate memory.

    Parameters
    ----------
    size
        Number of bytes.
    info
        Not used.

    Raises
    ------
    MPIException
        ERR_ARG: `size` is negative. ERR_NO_MEM: there is not so much memory.
    """
    if size < 0:
        raise MPIException(ERR_ARG, f"a number of bytes cannot be {size}")
    try:
        return buffer.allocate(size)
    except MemoryError as error:
        raise MPIException(ERR_NO_MEM, f"{size} bytes of memory cannot be allocated") from error


def Free_mem(mem: buffer) -> None:
    """Release memory of `Alloc_mem`.

    Parameters
    ----------
    mem
        Memory to release; it is empty afterwards.
    """
    mem.release()


def Get_address(location: Any) -> int:
    """Return the address of a buffer's first byte.

    Parameters
    ----------
    location
        Buffer, or a constant such as MPI.BOTTOM.

    Returns
    -------
    int
        The address; 0 for an empty buffer.

    References
    ----------
    MPI 4.1, section 5.1.5.
    """
    if isinstance(location, _Constant):
        return int(location)
    view, _ = as_bytes(location, readonly=True)
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0]) if view.nbytes else 0


def Aint_add(base: int, disp: int) -> int:
    """Return an address plus a number of bytes.

    Parameters
    ----------
    base
        Address.
    disp
        Displacement in bytes.

    References
    ----------
    MPI 4.1, section 5.1.5.
    """
    return base + disp


def Aint_diff(addr1: int, addr2: int) -> int:
    """Return the bytes from the second address to the first.

    Parameters
    ----------
    addr1, addr2
        Addresses.

    References
    ----------
    MPI 4.1, section 5.1.5.
    """
    return addr1 - addr2


__all__ = [
    "Aint_add",
    "Aint_diff",
    "Alloc_mem",
    "BOTTOM",
    "BUFFER_AUTOMATIC",
    "BottomType",
    "BufferAutomaticType",
    "Free_mem",
    "Get_address",
    "IN_PLACE",
    "InPlaceType",
    "buffer",
    "memory",
]
