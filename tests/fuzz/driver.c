/*
 * A small coverage-guided fuzzer, for machines that have gcc alone.
 *
 *     fuzz TARGET CORPUS RUNS SECONDS SEED [KEEP]
 *
 * Every input of the corpus is run, then mutations of them: RUNS of them, or until SECONDS are over (0: no
 * bound). What reaches an edge that none before reached joins the inputs in memory, and with KEEP is written
 * to the corpus. The input in hand lies in the file CORPUS.last, so that whatever ends the process leaves it
 * there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

enum { LONGEST = 1024, INPUTS_MOST = 4096, EDGES = 1 << 13 };

struct seed {
    uint8_t *bytes;
    size_t length;
};

static uint8_t seen[EDGES], hit[EDGES];
static uintptr_t previous;
static struct seed seeds[INPUTS_MOST];
static unsigned seed_count;
static uint64_t chance;

/* Called by instrumented code at every edge (gcc -fsanitize-coverage=trace-pc). */
__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void) {
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    hit[(here ^ previous << 1) % EDGES] = 1;
    previous = here;
}

__attribute__((no_sanitize_coverage)) static uint64_t draw(uint64_t below) {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return chance % below;
}

__attribute__((no_sanitize_coverage)) static int reached_more(void) {
    int more = 0;
    for (unsigned i = 0; i < EDGES; i++)
        if (hit[i] && !seen[i])
            seen[i] = 1, more = 1;
    memset(hit, 0, sizeof hit);
    previous = 0;
    return more;
}

__attribute__((no_sanitize_coverage)) static size_t mutate(uint8_t *bytes, size_t length) {
    for (uint64_t changes = 1 + draw(6); changes; changes--) {
        size_t at = length ? draw(length) : 0, other = draw(LONGEST / 4);
        switch (draw(6)) {
        case 0:
            if (length)
                bytes[at] ^= (uint8_t)(1u << draw(8));
            break;
        case 1:
            if (length)
                bytes[at] = (uint8_t)draw(256);
            break;
        case 2: /* more of the same */
            if (length + other < LONGEST && at + other <= length) {
                memmove(bytes + at + other, bytes + at, length - at);
                length += other;
            }
            break;
        case 3: /* less */
            if (at + other < length) {
                memmove(bytes + at, bytes + at + other, length - at - other);
                length -= other;
            }
            break;
        case 4: /* the end of another input */
            if (seed_count) {
                const struct seed *from = &seeds[draw(seed_count)];
                size_t begin = from->length ? draw(from->length) : 0, count = from->length - begin;
                if (at + count > LONGEST)
                    count = LONGEST - at;
                memcpy(bytes + at, from->bytes + begin, count);
                if (at + count > length)
                    length = at + count;
            }
            break;
        default:
            for (unsigned i = 0; i < 16 && length < LONGEST; i++)
                bytes[length++] = (uint8_t)draw(256);
        }
    }
    return length;
}

static void remember(const uint8_t *bytes, size_t length) {
    if (seed_count == INPUTS_MOST)
        return;
    seeds[seed_count] = (struct seed){malloc(length + 1), length};
    MUST(seeds[seed_count].bytes);
    memcpy(seeds[seed_count++].bytes, bytes, length);
}

static void load(const char *corpus) {
    DIR *folder = opendir(corpus);
    struct dirent *entry;
    uint8_t bytes[LONGEST];
    MUST(folder);
    while ((entry = readdir(folder))) {
        int file = openat(dirfd(folder), entry->d_name, O_RDONLY);
        ssize_t length = file < 0 ? -1 : read(file, bytes, sizeof bytes);
        if (length >= 0)
            remember(bytes, (size_t)length);
        if (file >= 0)
            close(file);
    }
    closedir(folder);
}

static void keep(const char *corpus, const uint8_t *bytes, size_t length) {
    char path[4096];
    uint64_t name = 1469598103934665603u;
    for (size_t i = 0; i < length; i++)
        name = (name ^ bytes[i]) * 1099511628211u;
    snprintf(path, sizeof path, "%s/%016llx", corpus, (unsigned long long)name);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    MUST(file >= 0 && write(file, bytes, length) == (ssize_t)length);
    close(file);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int count, char **words) {
    static const struct {
        const char *name;
        void (*run)(struct input *);
    } targets[] = {{"serve", fuzz_serve}, {"receive", fuzz_receive}, {"table", fuzz_table},
                   {"bulk", fuzz_bulk},   {"nesting", fuzz_nesting}, {"race", fuzz_race}};
    void (*run)(struct input *) = NULL;
    MUST(count >= 6);
    for (unsigned i = 0; i < sizeof targets / sizeof *targets; i++)
        if (!strcmp(words[1], targets[i].name))
            run = targets[i].run;
    MUST(run);
    const char *corpus = words[2];
    unsigned long runs = strtoul(words[3], NULL, 10), done = 0, found = 0;
    double seconds = strtod(words[4], NULL), end = now() + seconds;
    chance = strtoull(words[5], NULL, 10) * 2 + 1;
    char path[4096];
    snprintf(path, sizeof path, "%s.last", corpus);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    static uint8_t bytes[LONGEST];
    MUST(file >= 0);
    load(corpus);
    unsigned given = seed_count;
    for (; (!runs || done < runs + given) && (!seconds || now() < end); done++) {
        size_t length = 0;
        if (seed_count) {
            const struct seed *from = &seeds[done < given ? done : draw(seed_count)];
            memcpy(bytes, from->bytes, length = from->length);
        }
        if (done >= given)
            length = mutate(bytes, length);
        MUST(ftruncate(file, 0) == 0 && pwrite(file, bytes, length, 0) == (ssize_t)length);
        struct input input = {bytes, length};
        run(&input);
        if (reached_more() && done >= given) {
            found++;
            remember(bytes, length);
            if (count > 6)
                keep(corpus, bytes, length);
        }
    }
    unsigned edges = 0;
    for (unsigned i = 0; i < EDGES; i++)
        edges += seen[i];
    printf("%s: %lu runs, %u inputs, %lu of them new, %u edges\n", words[1], done, seed_count, found, edges);
    unlink(path);
    return 0;
}
