/* Sparse products whose mask comes from shift registers (paper 83): no index is read, only values and seeds.
 *
 * A register of `bits` bits moves right once a step; the parity of its fed-back bits comes in at the top. A connection
 * exists where the state is at most `limit`. Links to nothing.
 */
#include <stdint.h>

static uint32_t step(uint32_t state, uint32_t feedback, uint32_t bits) {
    uint32_t parity = state & feedback;
    parity ^= parity >> 16;
    parity ^= parity >> 8;
    parity ^= parity >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (state >> 1) | ((parity & 1u) << (bits - 1u));
}

/* mask[input * outputs + output] = 1 where the connection exists. */
void tfc_lfsr_mask(uint32_t bits, uint32_t feedback, uint32_t limit, const uint32_t *seeds, int32_t inputs,
                   int32_t outputs, uint8_t *mask) {
    for (int32_t o = 0; o < outputs; ++o) {
        uint32_t state = seeds[o];
        for (int32_t i = 0; i < inputs; ++i) {
            mask[(int64_t)i * outputs + o] = (uint8_t)(state <= limit);
            state = step(state, feedback, bits);
        }
    }
}

/* y[o] = sum of x[i] * (next value) over the inputs that exist, in ascending order; the number of values read. */
int64_t tfc_lfsr_product(uint32_t bits, uint32_t feedback, uint32_t limit, const uint32_t *seeds, int32_t inputs,
                         int32_t outputs, const float *values, const float *x, float *y) {
    const float *next = values;
    for (int32_t o = 0; o < outputs; ++o) {
        uint32_t state = seeds[o];
        float sum = 0.0f;
        for (int32_t i = 0; i < inputs; ++i) {
            if (state <= limit) {
                sum += x[i] * *next++;
            }
            state = step(state, feedback, bits);
        }
        y[o] = sum;
    }
    return next - values;
}
