-- The cell of a coarser resolution that holds a cell (hexadecimal text), by the bits of the index: bits 52-55 are the
-- resolution, and the three bits of each finer digit are set.
(cell, resolution) AS
printf('%x',
    ((('0x' || cell)::UBIGINT & 18379190079298994175::UBIGINT) | (resolution::UBIGINT << 52))
    | ((1::UBIGINT << (3 * (15 - resolution))::UBIGINT) - 1::UBIGINT))
