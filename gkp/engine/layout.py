"""The layout of feature maps in memory, and the fields of a step.

A map is `[channel][row][column]` float32. A row has `pitch` columns, a whole number of vector pieces; columns beyond the image
are zero. Above the image is a row of zeros, below it at least one: those halo rows are never written, so they stay zero for
all images. Kernels of more than 3x3 need more of them; the place of a map is that of the last one above the image. A feature
vector (after global pooling or flattening) is plain `[channel]`.
"""

from __future__ import annotations

from dataclasses import dataclass

LINE = 16  # floats of a cache line: buffers start on one
HALO = 16  # floats before the first pixel of a row in scratch memory: that pixel starts a cache line
SUMMED = 288  # taps of one sum
GROUP = 2  # row groups that go through the micro-kernel together

NEAR, FAR = 3 / 4, 3 / 2  # points of Winograd's F(4, 3), with 0, their negatives and infinity: rounds 1.4 times less than 1, 2

# Operation codes of a step.
(
    LOAD,
    CONV,
    SHORTCUT,
    MAX_POOL,
    MEAN,
    FLATTEN,
    LINEAR,
    STORE,
    SPREAD,  # backward from here on
    UNPOOL,
    UNMEAN,
    COMBINE,
    UNFLATTEN,
    NARROW,  # a convolution of few pixels, see `narrow`
) = range(14)

# Columns of a step's row in the program. Places are floats within an image's memory; -1 stands for "none".
(
    OP,
    SPAN,  # images that go through a run of steps together, so that their maps stay in the second-level cache
    SOURCE,
    TARGET,
    OTHER,  # the residual, or what a gradient is added to; -1: none
    CHANNELS,  # of the source
    OUT_CHANNELS,
    HEIGHT,
    WIDTH,
    PITCH,
    PLANE,
    OUT_HEIGHT,
    OUT_WIDTH,
    OUT_PITCH,
    OUT_PLANE,
    TILE,  # output rows of a tile: 4 with Winograd's algorithm, else 1; of a pool: its padding
    FREQUENCIES,  # 6 or 1
    PIECES,  # of a vector: tile rows that it holds
    SIGN_BYTES,  # of a piece
    PIECE,  # pixels of a piece, of the output
    ACROSS,  # vectors of an output row
    GROUPS,  # row groups of the output: LANES // PIECE tile rows each
    WINOGRAD,
    STRIDE,
    KERNEL,
    SCRATCH,  # place of the transformed rows in scratch memory, which no step of another geometry uses
    SCRATCH_STRIDE,  # from one frequency (or kernel row) to the next
    USED,  # place of the list of channels read, in the int32 tables
    USED_COUNT,
    BLOCKS,  # place of the blocks, in the int32 tables
    BLOCK_COUNT,
    ADDING,  # whether blocks add to common sums (gradient of grouped kernels)
    BIAS,  # place of the biases, in the constants
    FLOOR,  # place of ReLU's 0 or of -inf, in the constants
    READ,  # signs that mask the result, in bytes within an image's signs; -1: none
    WRITTEN,  # signs of the result, kept for the gradient; -1: none
    IO,  # which of the tensors handed in or out
    IO_STRIDE,  # its floats an image
) = range(38)
FIELDS = 38

BLOCK_FIELDS = 5  # of a block: filters, taps, place of its tap table, place of its weights, place of its channels
# A step of `narrow` has other blocks: vectors of filters, channels, place of their planes, place of the weights, place of the
# filters' channels (-1: none). USED and USED_COUNT are its kinds of pixels: number of taps, place of their numbers and offsets,
# number of pixels, place of their offsets in the source and in the sums.
PIXEL_FIELDS = 4
FILTER_VECTORS = (4, 2, 1)


def round_up(value: int, to: int) -> int:
    """`value`, up to the next multiple of `to`."""
    return -(-value // to) * to


@dataclass(frozen=True)
class MapShape:
    """The shape of a feature map and how it lies in memory.

    Attributes:
        channels, height, width: of the map.
        lanes: floats of a vector.
        halo: rows of zeros above and below the image.
    """

    channels: int
    height: int
    width: int
    lanes: int
    halo: int = 1

    @property
    def piece(self) -> int:
        """Pixels of a piece of a vector."""
        return min(self.lanes, max(4, 1 << (self.width - 1).bit_length()))

    @property
    def pitch(self) -> int:
        """Columns of a row in memory."""
        return round_up(self.width, self.piece)

    @property
    def across(self) -> int:
        """Vectors (or pieces, where a vector has several) of a row."""
        return self.pitch // self.piece

    @property
    def plane(self) -> int:
        """Floats of one channel: whole groups of tile rows and the rows of halo."""
        rows = round_up(self.height, 4 * (self.lanes // self.piece)) + 2 * self.halo
        return round_up(rows * self.pitch, LINE)

    @property
    def floats(self) -> int:
        """Floats of the map."""
        return self.channels * self.plane

    @property
    def sign_bytes(self) -> int:
        """Bytes that hold one bit a pixel."""
        return self.channels * self.height * self.sign_pitch

    @property
    def sign_pitch(self) -> int:
        """Bytes of a row of signs."""
        return self.across * max(self.piece // 8, 1)

    def groups(self, tile_rows: int) -> int:
        """Row groups: `lanes // piece` tiles of `tile_rows` rows each."""
        return -(-self.height // (tile_rows * (self.lanes // self.piece)))
