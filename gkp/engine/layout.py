"""The layout of feature maps in memory, and the fields of a step.

A map is `[channel][row][column]` in float32. A row has `pitch` columns, a whole number of vector pieces; columns beyond the
image are zero. Above and below the image are rows of zeros (halo), one for 3x3 kernels and more for larger ones; they are never
written, so they stay zero for all images. The place of a map is that of the last halo row above the image. A feature vector
(after global pooling or flattening) is `[channel]`.
"""

from __future__ import annotations

from dataclasses import dataclass

LINE = 16  # floats in a cache line; buffers start at one
HALO = 16  # floats before the first pixel of a row in scratch memory, so that this pixel starts a cache line
SUMMED = 288  # taps in one sum
GROUP = 2  # row groups that a micro-kernel processes together

NEAR, FAR = 3 / 4, 3 / 2  # points of Winograd's F(4, 3) with 0, negatives, infinity; errors 1.4 times smaller than with 1, 2

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

# Columns of a step's row in the program. Places are counted in floats within an image's memory; -1 stands for "none".
(
    OP,
    SPAN,  # images that pass a run of steps together, so that their maps stay in the second-level cache
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
    TILE,  # output rows of a tile: 4 with Winograd's algorithm, else 1; for a pool: its padding
    FREQUENCIES,  # 6 or 1
    PIECES,  # of a vector: tile rows that it holds
    SIGN_BYTES,  # of a piece
    PIECE,  # pixels of a piece, of the output
    ACROSS,  # vectors of an output row
    GROUPS,  # row groups of the output: LANES // PIECE tile rows each
    WINOGRAD,
    STRIDE,
    KERNEL,
    SCRATCH,  # place of the transformed rows in scratch memory, used by steps of the same geometry only
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
    IO,  # the number of the input or output tensor
    IO_STRIDE,  # floats of one image in it
) = range(38)
FIELDS = 38

BLOCK_FIELDS = 5  # of a block: filters, taps, place of its tap table, place of its weights, place of its channels
# Blocks of a step of `narrow`: vectors of filters, channels, place of their planes, place of the weights, place of the filters'
# channels (-1: none). USED and USED_COUNT are its kinds of pixels: number of taps, place of their numbers and offsets, number
# of pixels, place of their offsets in the source and in the sums.
PIXEL_FIELDS = 4
FILTER_VECTORS = (4, 2, 1)


def round_up(value: int, to: int) -> int:
    """The smallest multiple of `to` that is not below `value`."""
    return -(-value // to) * to


@dataclass(frozen=True)
class MapShape:
    """The shape of a feature map and its layout in memory.

    Attributes:
        channels, height, width: The shape.
        lanes: Floats in a vector.
        halo: Rows of zeros above and below the image.
    """

    channels: int
    height: int
    width: int
    lanes: int
    halo: int = 1

    @property
    def piece(self) -> int:
        """Pixels in a piece of a vector."""
        return min(self.lanes, max(4, 1 << (self.width - 1).bit_length()))

    @property
    def pitch(self) -> int:
        """Columns of a row in memory, including zeros."""
        return round_up(self.width, self.piece)

    @property
    def across(self) -> int:
        """Vectors in a row; pieces where a vector has several."""
        return self.pitch // self.piece

    @property
    def plane(self) -> int:
        """Floats of one channel: whole groups of tile rows, and the halo."""
        rows = round_up(self.height, 4 * (self.lanes // self.piece)) + 2 * self.halo
        return round_up(rows * self.pitch, LINE)

    @property
    def floats(self) -> int:
        """Floats of the whole map."""
        return self.channels * self.plane

    @property
    def sign_bytes(self) -> int:
        """Bytes for one bit for each pixel."""
        return self.channels * self.height * self.sign_pitch

    @property
    def sign_pitch(self) -> int:
        """Bytes for one bit for each pixel of a row."""
        return self.across * max(self.piece // 8, 1)

    def groups(self, tile_rows: int) -> int:
        """The number of row groups, each of `lanes // piece` tiles of `tile_rows` rows."""
        return -(-self.height // (tile_rows * (self.lanes // self.piece)))
