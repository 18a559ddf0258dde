// y = W x for packed W and up to BATCH vectors x: the kernel of decoding.
//
// A tile is 32 rows of W, one per lane, by 128 columns; a lane reads its 128 codes of BITS bits as
// BITS loads of 16 bytes, and the warps of a block share out the tiles of its 32 rows.
//
// Codebook: a table in shared memory holds, for every pair of codes, the two fp16 values in one
// word. Each lane has a copy for its own row in a bank of its own, so no look-up ever conflicts.
//
// Sums are made by the tensor cores in float32. Lane 4g + t owns row 4g + t, while the hardware
// adds up k over the four lanes 4g..4g+3 that hold a column of B. So A is made block-diagonal: row
// 4b + t of A holds x_b where k belongs to lanes t, else 0; then D[4b + t][g] is the product of
// W's row 4g + t with x_b. A has 16 rows, room for four vectors. Of fewer it holds further columns
// instead, each of which counts in its own rows of D only; so the four registers of A are always
// one load of 16 bytes, which serves 16 columns of one vector.
//
// fp16 weights times bf16 x: a warp scales its slice of x by a power of two so that the largest
// lies in [2^14, 2^15), where fp16 holds every bf16 exactly down to 2^-29 of the largest.
//
// A uniform code is the subnormal fp16 number code * 2^-24 as it is: nothing has to be converted.
// The zero point goes off with the sum of x, which the tensor cores add up as products with ones.

#define QUADS ((BATCH + 3) / 4)
#define SLOTS (BATCH == 1 ? 2 : BATCH)  // sums per row and warp

#ifdef CODEBOOK
#define TABLE_BYTES (128 << (2 * BITS))
#define TABLE_ROOM (BITS == 4 ? TABLE_BYTES : 2 * TABLE_BYTES)  // to align it
#else
#define TABLE_BYTES 0
#define TABLE_ROOM 0
#endif

struct Arguments {
  const uint4* codes;             // (blocks, units, BITS, 32)
  const unsigned short* table;    // codebook (32 blocks, LEVELS), or scale (groups, 32 blocks)
  const unsigned short* zero;     // zero point (groups, 32 blocks)
  const unsigned short* x;        // (batch, columns)
  unsigned short* y;              // (batch, rows)
  const unsigned short* bias;     // (rows) or null
  const int* row_offsets;         // (32 blocks + 1): CSR of the sparse part
  const unsigned* entries;        // column | fp16 value << 16
  long long x_stride, y_stride;
  int rows, columns, units, batch;
  int units_per_group;
};

DEVICE void load_tile(unsigned* words, const uint4* tile, int lane) {
#pragma unroll
  for (int i = 0; i < BITS; i++) {
    const uint4 v = stream(tile + 32 * i + lane);
    words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
  }
}

// The lane's four columns of vector b in a warp's copy of a tile's x. From four vectors on, b and
// b + 2 alternate word by word.
DEVICE unsigned* place_of(unsigned* x, int b, int lane) {
  if (BATCH <= 2) return x + b * (UNIT / 2) + 2 * lane;
  return x + (b / 4 * 2 + b % 2) * UNIT + 4 * lane + b % 4 / 2;
}
#define PLACE_STEP (BATCH <= 2 ? 1 : 2)  // words from the first two columns to the next two

DEVICE uint2 load_x(const Arguments& a, int b, int unit, int lane) {
  const int column = unit * UNIT + 4 * lane;
  if (b >= a.batch || column >= a.columns) return make_uint2(0, 0);
  const unsigned short* x = a.x + b * a.x_stride + column;
#ifdef ALIGNED  // any four columns of x are 8 bytes at one address
  return load_8(x);
#else
  unsigned short h[4];
  for (int i = 0; i < 4; i++) h[i] = column + i < a.columns ? x[i] : 0;
  return make_uint2(h[0] | (unsigned)h[1] << 16, h[2] | (unsigned)h[3] << 16);
#endif
}

// A warp's share of x: at most ROUND tiles of 128 columns of every vector, zero beyond the edges.

DEVICE void load_round(uint2 (*v)[BATCH], const Arguments& a, int unit, int count, int lane) {
#pragma unroll
  for (int n = 0; n < ROUND; n++)
#pragma unroll
    for (int b = 0; b < BATCH; b++)
      v[n][b] = load_x(a, n < count ? b : a.batch, unit + n * WARPS, lane);
}

// From registers to shared memory, as fp16. `scales` gets what undoes the scaling of each vector.
DEVICE void store_round(unsigned* to, const uint2 (*v)[BATCH], int count, int lane,
                        float* scales) {
  float up[BATCH];
#pragma unroll
  for (int b = 0; b < BATCH; b++) {
    up[b] = 1;
#ifdef BF16
    unsigned largest = 0;
#pragma unroll
    for (int n = 0; n < ROUND; n++)
      largest = max(largest, max(max(v[n][b].x & 0x7fffu, (v[n][b].x >> 16) & 0x7fffu),
                                 max(v[n][b].y & 0x7fffu, (v[n][b].y >> 16) & 0x7fffu)));
    const int exponent = min(141 - (int)(warp_max(largest) >> 7), 126);
    up[b] = float_of((unsigned)(127 + exponent) << 23);
    if (lane == 0) scales[b] = float_of((unsigned)(127 - exponent) << 23);
#else
    if (lane == 0) scales[b] = 1;
#endif
  }
#pragma unroll
  for (int n = 0; n < ROUND; n++) {
    if (n >= count) break;
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      unsigned* place = place_of(to + n * BATCH * (UNIT / 2), b, lane);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const unsigned w = i ? v[n][b].y : v[n][b].x;
#ifdef BF16
        place[i * PLACE_STEP] =
            floats_to_halves(float_of(w << 16) * up[b], float_of(w & 0xffff0000u) * up[b]);
#else
        place[i * PLACE_STEP] = w;
#endif
      }
    }
  }
}

#ifdef CODEBOOK
struct Codebook {  // what a lane needs to build its share of the table of its row
  unsigned values[LEVELS / 2];
  unsigned high[(LEVELS + WARPS - 1) / WARPS];
};

DEVICE void load_codebook(Codebook& book, const unsigned short* at, int warp) {
#pragma unroll
  for (int i = 0; i < LEVELS / 4; i++) {
    const uint2 v = ((const uint2*)at)[i];
    book.values[2 * i] = v.x, book.values[2 * i + 1] = v.y;
  }
#pragma unroll
  for (int i = 0; i < (LEVELS + WARPS - 1) / WARPS; i++)
    book.high[i] = (unsigned)at[(warp + i * WARPS) % LEVELS] << 16;
}

// Word (i + LEVELS j) of the lane's bank: values i and j of its row.
DEVICE void build_table(unsigned* table, const Codebook& book, int warp, int lane) {
#pragma unroll
  for (int n = 0; n < (LEVELS + WARPS - 1) / WARPS; n++) {
    const int j = warp + n * WARPS;
    if (j >= LEVELS) break;
#pragma unroll
    for (int i = 0; i < LEVELS; i++) {
      const unsigned pair = book.values[i / 2];
      table[(j * LEVELS + i) * 32 + lane] = (i % 2 ? pair >> 16 : pair & 0xffffu) | book.high[n];
    }
  }
}
#endif

#ifdef SPARSE
// The sparse part: SHARE lanes have a row together, and load its first EARLY * SHARE entries well
// before they are needed.
struct Sparse {
  int start, end;
  unsigned entry[EARLY];
  float x[EARLY];  // of vector 0
};

DEVICE void load_range(Sparse& s, const Arguments& a, int first_row) {
  const int row = threadIdx.x / SHARE;
  s.start = s.end = 0;
  if (row >= ROWS) return;
  s.start = a.row_offsets[first_row + row] + threadIdx.x % SHARE;
  s.end = a.row_offsets[first_row + row + 1];
}

DEVICE void load_entries(Sparse& s, const Arguments& a) {
#pragma unroll
  for (int i = 0; i < EARLY; i++)
    s.entry[i] = s.start + i * SHARE < s.end ? a.entries[s.start + i * SHARE] : 0;
}

DEVICE void load_sparse_x(Sparse& s, const Arguments& a) {
#pragma unroll
  for (int i = 0; i < EARLY; i++) s.x[i] = TO_FLOAT(load_2(a.x + (s.entry[i] & 0xffffu)));
}

DEVICE void multiply_sparse(const Sparse& s, const Arguments& a, float* sums) {
#pragma unroll
  for (int b = 0; b < BATCH; b++) {
    const unsigned short* x = a.x + b * a.x_stride;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EARLY; i++) {
      const float known = b == 0 ? s.x[i] : b < a.batch ? TO_FLOAT(x[s.entry[i] & 0xffffu]) : 0.0f;
      if (s.start + i * SHARE < s.end) sum += half_to_float(s.entry[i] >> 16) * known;
    }
    for (int i = s.start + SHARE * EARLY; i < s.end; i += SHARE) {
      const unsigned entry = a.entries[i];
      if (b < a.batch) sum += half_to_float(entry >> 16) * TO_FLOAT(x[entry & 0xffffu]);
    }
    sum = share_sum<SHARE>(sum);
    if (threadIdx.x < ROWS * SHARE && threadIdx.x % SHARE == 0)
      sums[b * ROWS + threadIdx.x / SHARE] = sum;
  }
}
#endif

#ifdef GROUP
#define GROUPS (GROUP < UNIT ? UNIT / GROUP : 1)  // of a tile
struct Grid {  // of the rows whose sums the lane has
  unsigned short zero[GROUPS][2], scale[GROUPS][2];
};

DEVICE void load_grid(Grid& grid, const Arguments& a, int unit, int row) {
  if (unit >= a.units) return;
#pragma unroll
  for (int i = 0; i < GROUPS; i++) {
    const long long group = GROUP < UNIT ? unit * GROUPS + i : unit / a.units_per_group;
    const long long at = group * gridDim.x * ROWS + row;
#pragma unroll
    for (int k = 0; k < 2; k++) grid.zero[i][k] = load_2(a.zero + at + 4 * k);
#pragma unroll
    for (int k = 0; k < 2; k++) grid.scale[i][k] = load_2(a.table + at + 4 * k);
  }
}
#endif

// Partial sums, in independent chains. Of one vector, chains 0 to 3 count in rows 0..3, 8..11,
// 4..7 and 12..15; of two, chains 0 and 2 in rows 0..7 and chains 1 and 3 in rows 8..15.
#define CHAINS (BATCH <= 2 ? 4 : 2 * QUADS)
#ifdef UNIFORM
#define ALL_CHAINS (CHAINS + QUADS)  // the last ones add up x
#define ONES 0x3c003c00u
// Of up to two vectors, odd pairs meet odd chains only, and may stand 4 bits higher.
#define SIXTEENFOLD (BITS == 4 && BATCH <= 2)

DEVICE unsigned subnormal_pair(const unsigned* w, int p) {
  if (!SIXTEENFOLD) return code_pair(w, p);
  return (p & 2 ? w[p / 4] >> 8 : w[p / 4]) & (p & 1 ? 0x00f000f0u : 0x000f000fu);
}
#else
#define ALL_CHAINS CHAINS
#define SIXTEENFOLD 0
#endif

// 32 columns: all weights first, so that many look-ups are under way at a time. `v` is zero in
// the lanes off the diagonal.
DEVICE void multiply_chunk(float (*sum)[4], const unsigned* words, unsigned table, unsigned x,
                           uint4* v, bool diagonal) {
  unsigned w[16];
#pragma unroll
  for (int p = 0; p < 16; p++) {
#ifdef CODEBOOK
    w[p] = load_shared(table_address(words, p, table));
#else
    w[p] = subnormal_pair(words, p);
#endif
  }
#if BATCH == 1
#pragma unroll
  for (int e = 0; e < 2; e++) {  // sixteen columns
    load_shared_4(v[e], x + 32 * e, diagonal);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const unsigned* pairs = w + 8 * e + i / 2 * 4 + i % 2;
      multiply(sum[i], v[e].x, v[e].y, v[e].z, v[e].w, pairs[0], pairs[2]);
    }
#ifdef UNIFORM
    multiply(sum[CHAINS], v[e].x, v[e].y, v[e].z, v[e].w, ONES, ONES);
#endif
  }
#elif BATCH == 2
#pragma unroll
  for (int e = 0; e < 4; e++) {  // eight columns
    uint4& part = v[e % 2];
    load_shared_4(part, x + 16 * e, diagonal);
#pragma unroll
    for (int i = 0; i < 2; i++)
      multiply(sum[e % 2 * 2 + i], part.x, part.y, part.z, part.w, w[4 * e + i], w[4 * e + i + 2]);
#ifdef UNIFORM
    multiply(sum[CHAINS], part.x, part.y, part.z, part.w, ONES, ONES);
#endif
  }
#else
#pragma unroll
  for (int e = 0; e < 8; e++) {  // four columns
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
      uint4& part = v[q % 2];
      load_shared_4(part, x + 16 * e + q * (4 * UNIT * 2), diagonal);
      multiply(sum[e % 2 * QUADS + q], part.x, part.y, part.z, part.w, w[2 * e], w[2 * e + 1]);
#ifdef UNIFORM
      multiply(sum[CHAINS + q], part.x, part.y, part.z, part.w, ONES, ONES);
#endif
    }
  }
#endif
}

// Out of the chains into the sums of each quad of vectors, less the zero points times the sum of x,
// times the scales of the rows and of x: 0 and 1 are of vector `slot`, or, of a single vector, of
// the columns that this slot has; 2 and 3 are of vector slot + 2.
DEVICE void add_chains(float (*total)[4], const float (*sum)[4], const float* scales, int slot,
                       const float* row_scales, const float* zeros) {
  const float odd = SIXTEENFOLD ? 0.0625f : 1.0f;
#pragma unroll
  for (int q = 0; q < QUADS; q++)
#pragma unroll
    for (int i = 0; i < (BATCH > 2 ? 4 : 2); i++) {
      float whole;
      if (BATCH > 2) {
        whole = sum[q][i] + sum[QUADS + q][i];
      } else {
        const float first = sum[0][i] + sum[1][i + 2] * odd;
        const float second = sum[2][i] + sum[3 % CHAINS][i + 2] * odd;
        whole = BATCH == 2 ? first + second : slot == 0 ? first : second;
      }
#ifdef UNIFORM
      const float* of_x = sum[CHAINS + q];
      const float sum_of_x = BATCH > 2 ? of_x[i] : of_x[i] + of_x[(i + 2) % 4];
      whole = whole * 16777216.0f - zeros[i % 2] * sum_of_x;  // times 2^24
#endif
      total[q][i] +=
          whole * row_scales[i % 2] * scales[min(4 * q + slot + (i & 2), BATCH - 1)];
    }
}

// What a block does once all sums are in shared memory.
struct Epilogue {  // loaded early, for row `lane` of the block
  float scale, bias;
};

DEVICE Epilogue load_epilogue(const Arguments& a, int row) {
  Epilogue e = {1, 0};
#if defined(UNIFORM) && !defined(GROUP)
  e.scale = half_to_float(load_2(a.table + row));
#endif
  if (a.bias && row < a.rows) e.bias = TO_FLOAT(load_2(a.bias + row));
  return e;
}

DEVICE void store_results(const Arguments& a, const float* sums, const float* sparse_sums,
                          const Epilogue& e, int first_row) {
  for (int i = threadIdx.x; i < a.batch * ROWS; i += WARPS * 32) {
    const int b = i / ROWS, r = i % ROWS;  // always the thread's own lane
    if (first_row + r >= a.rows) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      sum += sums[(w * SLOTS + b) * ROWS + r];
      if (BATCH == 1) sum += sums[(w * SLOTS + 1) * ROWS + r];
    }
    sum *= e.scale;
#ifdef SPARSE
    sum += sparse_sums[b * ROWS + r];
#endif
    a.y[b * a.y_stride + first_row + r] = FROM_FLOAT(sum + e.bias);
  }
}

DEVICE void store_sums(float* sums, const float (*total)[4], int warp, int slot, int out_row) {
#pragma unroll
  for (int q = 0; q < QUADS; q++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int b = 4 * q + slot + (i & 2);
      if (b < SLOTS) sums[(warp * SLOTS + b) * ROWS + out_row + 4 * (i & 1)] = total[q][i];
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) gemv(const Arguments a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first_row = blockIdx.x * ROWS;
  const int row = first_row + lane;
  const int mine = (a.units - warp + WARPS - 1) / WARPS;  // tiles of this warp
  const uint4* tiles = a.codes + ((long long)blockIdx.x * a.units + warp) * (BITS * 32);
  const int g = lane >> 2, t = lane & 3, slot = g >> 2;
  const int out_row = 8 * t + (g & 3);  // of sums 0 and 2; 1 and 3 are 4 rows on

  // Shared memory: the table, x of every warp, then sums and scales.
  const int x_words = BATCH * (UNIT / 2);  // of a tile
  const unsigned base = shared_address(shared);
  const unsigned aligned = TABLE_ROOM > TABLE_BYTES ? -base & (TABLE_BYTES - 1) : 0;
  unsigned* my_x = (unsigned*)(shared + TABLE_ROOM) + warp * ROUND * x_words;
  float* sums = (float*)(shared + TABLE_ROOM) + WARPS * ROUND * x_words;
  float* scales = sums + WARPS * SLOTS * ROWS + warp * BATCH;
  float* sparse_sums = sums + WARPS * (SLOTS * ROWS + BATCH);

  // Nothing up to wait_for_input() depends on other kernels. The table's values come first: they
  // are needed first, and would queue behind the codes.
  let_next_start();
#ifdef CODEBOOK
  Codebook book;
  load_codebook(book, a.table + (long long)row * LEVELS, warp);
#endif
#ifdef SPARSE
  Sparse sparse;
  load_range(sparse, a, first_row);
#endif
  unsigned next[DEPTH][WORDS];
#pragma unroll
  for (int d = 0; d < DEPTH; d++)
    if (d < mine) load_tile(next[d], tiles + (long long)d * (WARPS * BITS * 32), lane);
  float zeros[2] = {};  // of the whole rows whose sums the lane has
#ifdef GROUP
  Grid next_grid;
  load_grid(next_grid, a, warp, first_row + out_row);
#elif defined(UNIFORM)
#pragma unroll
  for (int k = 0; k < 2; k++)
    zeros[k] = half_to_float(load_2(a.zero + first_row + out_row + 4 * k));
#endif
  const Epilogue epilogue = load_epilogue(a, row);
#ifdef CODEBOOK
  build_table((unsigned*)(shared + aligned), book, warp, lane);
#endif
#ifdef SPARSE
  load_entries(sparse, a);
#endif
  wait_for_input();

  uint2 round[ROUND][BATCH];
  load_round(round, a, warp, min(ROUND, mine), lane);
  const bool diagonal = (g & 3) == t && slot < SLOTS;
  const unsigned table = base + aligned + 4 * lane;
  uint4 v[2] = {};
  float total[QUADS][4] = {};

#pragma unroll 1
  for (int done = 0; done < mine || done == 0; done += ROUND) {
    const int here = min(ROUND, mine - done);
    if (done) {
      load_round(round, a, warp + done * WARPS, here, lane);
      __syncwarp();  // every lane is done with the x before
    }
    store_round(my_x, round, here, lane, scales);
    if (done == 0) {
#ifdef CODEBOOK
      __syncthreads();  // the table is there
#endif
#ifdef SPARSE
      load_sparse_x(sparse, a);
#endif
    }
    __syncwarp();
    // A slot's x: the second 8 of 16 columns; a vector's 256 bytes; or two vectors' 512.
    unsigned x = shared_address(my_x) + slot * (BATCH == 1 ? 16 : BATCH == 2 ? 256 : 512);

    float sum[ALL_CHAINS][4] = {};
#pragma unroll 1
    for (int k = 0; k < here; k++, x += x_words * 4) {
      const int ordinal = done + k;
      unsigned words[WORDS];
#pragma unroll
      for (int i = 0; i < WORDS; i++) words[i] = next[0][i];
#pragma unroll
      for (int d = 0; d + 1 < DEPTH; d++)
#pragma unroll
        for (int i = 0; i < WORDS; i++) next[d][i] = next[d + 1][i];
      if (ordinal + DEPTH < mine)
        load_tile(next[DEPTH - 1], tiles + (long long)(ordinal + DEPTH) * (WARPS * BITS * 32),
                  lane);
#ifdef GROUP
      const Grid grid = next_grid;
      load_grid(next_grid, a, warp + (ordinal + 1) * WARPS, first_row + out_row);
#endif
#pragma unroll
      for (int c = 0; c < 4; c++) {
        multiply_chunk(sum, words + c * BITS, table, x + c * (BATCH <= 2 ? 64 : 128), v, diagonal);
#ifdef GROUP
        if ((c + 1) * GROUPS % 4 == 0) {
          const int group = c * GROUPS / 4;
          float s[2], z[2];
#pragma unroll
          for (int k = 0; k < 2; k++) {
            s[k] = half_to_float(grid.scale[group][k]);
            z[k] = half_to_float(grid.zero[group][k]);
          }
          add_chains(total, sum, scales, slot, s, z);
#pragma unroll
          for (int i = 0; i < ALL_CHAINS * 4; i++) sum[i / 4][i % 4] = 0;
        }
#endif
      }
    }
#ifndef GROUP
    const float ones[2] = {1, 1};
    add_chains(total, sum, scales, slot, ones, zeros);
#endif
  }
#ifdef SPARSE
  multiply_sparse(sparse, a, sparse_sums);
#endif
  store_sums(sums, total, warp, slot, out_row);
  __syncthreads();
  store_results(a, sums, sparse_sums, epilogue, first_row);
}
