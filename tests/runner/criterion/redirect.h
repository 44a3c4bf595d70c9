/* What a test prints, read back: the two streams go to temporary files in place of Criterion's pipes.
 * Owns: nothing; runner.c does. Threads: the test's. Rule: flush the stream before it is read back. */
#ifndef MOE_TESTS_RUNNER_REDIRECT_H
#define MOE_TESTS_RUNNER_REDIRECT_H

#include <stdio.h>

void cr_redirect_stdout(void);
void cr_redirect_stderr(void);
FILE *cr_get_redirected_stdout(void);
FILE *cr_get_redirected_stderr(void);

#endif
