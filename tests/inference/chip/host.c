/* Reads images from standard input, and prints the class and the logits of each; the names of the classes on standard
   error, each ended by a zero. */
#include <stdio.h>

#include "digits.h"

static const char *const names[MNIST_FLAX_CLASSES] = MNIST_FLAX_CLASS_NAMES;

int main(void)
{
    static uint8_t image[784];
    int32_t logits[MNIST_FLAX_CLASSES];

    while (fread(image, sizeof image, 1, stdin) == 1) {
        printf("%d", mnist_flax_classify(image, logits));
        for (int c = 0; c < MNIST_FLAX_CLASSES; c++)
            printf(" %ld", (long)logits[c]);
        printf("\n");
    }
    for (int c = 0; c < MNIST_FLAX_CLASSES; c++)
        fprintf(stderr, "%s%c", names[c], 0);
    return 0;
}
