// A packed matrix as it is, in fp16 or bf16, for products with many vectors. A warp writes a tile.

struct Arguments {
  const uint4* codes;           // (blocks, units, BITS, 32)
  const unsigned short* table;  // codebook (32 blocks, LEVELS), or scale (groups, 32 blocks)
  const unsigned short* zero;   // zero point (groups, 32 blocks)
  unsigned short* whole;        // (rows, columns)
  int rows, columns, units, group_size;
};

extern "C" __global__ void __launch_bounds__(256) dequantize(const Arguments a) {
  const int lane = threadIdx.x & 31, row = blockIdx.x * ROWS + lane;
  const int unit = blockIdx.y * 8 + (threadIdx.x >> 5);
  if (unit >= a.units || row >= a.rows) return;
  const uint4* tile = a.codes + ((long long)blockIdx.x * a.units + unit) * (BITS * 32);
  unsigned words[WORDS];
#pragma unroll
  for (int i = 0; i < BITS; i++) {
    const uint4 v = stream(tile + 32 * i + lane);
    words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
  }
  unsigned short* out = a.whole + (long long)row * a.columns;
  const bool aligned = a.columns % 8 == 0;
#pragma unroll
  for (int e = 0; e < 16; e++) {  // eight columns
    const int column = unit * UNIT + 8 * e;
    if (column >= a.columns) break;
    const unsigned* chunk = words + e / 4 * BITS;
    unsigned pairs[4];
#ifdef CODEBOOK
    const unsigned short* values = a.table + (long long)row * LEVELS;
#else
    const long long group = a.group_size ? column / a.group_size : 0;
    const long long at = group * gridDim.x * ROWS + row;
    const float scale = half_to_float(a.table[at]), zero = half_to_float(a.zero[at]);
#endif
#pragma unroll
    for (int p = 0; p < 4; p++) {
#ifdef CODEBOOK
      const unsigned index = table_index(chunk, e % 4 * 4 + p);
      const float low = half_to_float(values[index & (LEVELS - 1)]);
      const float high = half_to_float(values[index >> BITS]);
#else
      const unsigned codes = code_pair(chunk, e % 4 * 4 + p);
      const float low = ((codes & 0xffffu) - zero) * scale;
      const float high = ((codes >> 16) - zero) * scale;
#endif
      pairs[p] = FROM_FLOAT(low) | (unsigned)FROM_FLOAT(high) << 16;
    }
    if (aligned) {
      *(uint4*)(out + column) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    } else {
      for (int i = 0; i < 8 && column + i < a.columns; i++)
        out[column + i] = pairs[i / 2] >> 16 * (i % 2);
    }
  }
}
