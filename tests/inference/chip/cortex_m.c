/* Runs digits.c on an emulated Cortex-M without an operating system. By semihosting it reads images from the file
   `images`, and for each writes int32s to `answers`: its class, its logits, and the ticks of SysTick that it took. */
#include <stddef.h>
#include <stdint.h>

#include "digits.h"

enum { OPEN = 0x01, WRITE = 0x05, READ = 0x06, EXIT = 0x18, APPLICATION_EXIT = 0x20026 };

#define SYSTICK ((volatile uint32_t *)0xE000E010) /* control, value to count down from, value */

static uint32_t host(uint32_t operation, uint32_t argument)
{
    register uint32_t r0 __asm__("r0") = operation, r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static uint32_t host3(uint32_t operation, const void *a, const void *b, uint32_t c)
{
    const uint32_t arguments[3] = {(uint32_t)a, (uint32_t)b, c};
    return host(operation, (uint32_t)arguments);
}

void *memset(void *to, int value, size_t n)
{
    for (volatile uint8_t *byte = to; n > 0; n--)
        *byte++ = (uint8_t)value;
    return to;
}

static void reset(void)
{
    static uint8_t image[784];
    static int32_t answer[1 + MNIST_FLAX_CLASSES + 1];
    const void *images = (void *)host3(OPEN, "images", (void *)1, 6);
    const void *answers = (void *)host3(OPEN, "answers", (void *)5, 7);

    SYSTICK[1] = 0xFFFFFF;
    SYSTICK[0] = 5;
    while (host3(READ, images, image, sizeof image) == 0) {
        SYSTICK[2] = 0;
        answer[0] = mnist_flax_classify(image, answer + 1);
        answer[1 + MNIST_FLAX_CLASSES] = (int32_t)(0xFFFFFF - SYSTICK[2]);
        host3(WRITE, answers, answer, sizeof answer);
    }
    host(EXIT, APPLICATION_EXIT);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[2])(void) = {
    (void (*)(void))0x20002000, reset, /* the top of the stack, 8 kB of RAM */
};
