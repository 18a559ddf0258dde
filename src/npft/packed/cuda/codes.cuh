// The layout of packed codes: see layout.py.
#ifdef BITS

#define ROWS 32
#define UNIT 128
#define WORDS (4 * BITS)
#define LEVELS (1 << BITS)

// Pair `p` of a chunk of 32 codes in BITS words: the index into the table.
DEVICE unsigned table_index(const unsigned* w, int p) {
  const int width = 2 * BITS, whole = 32 / width;
  if (BITS == 4) return byte_of(w[p / 4], p % 4);
  if (p < whole * BITS) return (w[p / whole] >> (width * (p % whole))) & ((1u << width) - 1);
  // Three words of 3-bit codes have 2 bits left over each: together one more pair.
  return (w[0] >> 30) | ((w[1] >> 28) & 0xcu) | ((w[2 % BITS] >> 26) & 0x30u);
}

// Codes 2p and 2p + 1 of a chunk in the lower and upper half of a word.
DEVICE unsigned code_pair(const unsigned* w, int p) {
  const int whole = 16 / BITS;
  const unsigned mask = (LEVELS - 1) * 0x10001u;
  if (p < whole * BITS) return (w[p / whole] >> (BITS * (p % whole))) & mask;
  return ((w[0] >> 15) & 0x10001u) | ((w[1] >> 14) & 0x20002u) | ((w[2 % BITS] >> 13) & 0x40004u);
}

// The same times 128, as an address after `table`, which is aligned to the table's size but for 4
// bits, where a byte is an index as it is.
DEVICE unsigned table_address(const unsigned* w, int p, unsigned table) {
  const int width = 2 * BITS, whole = 32 / width, at = width * (p % whole) - 7;
  const unsigned mask = ((1u << width) - 1) << 7;
  if (BITS == 4 || p >= whole * BITS) return table + table_index(w, p) * 128;
  const unsigned word = w[p / whole];
  return ((at < 0 ? word << (at < 0 ? -at : 0) : word >> (at < 0 ? 0 : at)) & mask) | table;
}

#endif  // BITS
