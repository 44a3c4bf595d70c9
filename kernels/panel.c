/* Row-major weights into panels and back (kernels/matmul.h). Owns nothing; used when a model is made, imported or exported.
 * Not for the hot path: one thread, plain loops. Any thread, no state.
 * Rule: `panels` holds panel_floats(N, K) floats, `rowmajor` N * K (pack) or rows * K (unpack). */
#include "kernels/matmul.h"

void panel_pack(float *panels, const float *rowmajor, int64_t N, int64_t K)
{
    for (int64_t panel = 0; panel < panel_pad(N); panel += PANEL) {
        for (int64_t k = 0; k < K; k++)
            for (int64_t lane = 0; lane < PANEL; lane++)
                *panels++ = panel + lane < N ? rowmajor[(panel + lane) * K + k] : 0.0f;
    }
}

void panel_unpack(float *rowmajor, const float *panels, int64_t first, int64_t rows, int64_t K)
{
    for (int64_t n = first; n < first + rows; n++)
        for (int64_t k = 0; k < K; k++)
            *rowmajor++ = panels[panel_index(n, k, K)];
}
