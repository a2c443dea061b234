/*
 * The work of the guest. The command line has five numbers: pages to fill with random data, pages to write zeros to, pages to dirty a
 * second, how many of the filled pages these are taken from, and 1 to dirty as fast as it can: then the third number is only what work is
 * counted by. The first tick comes when filling is done.
 */
#include <stdint.h>

#define PAGE_BYTES 4096ull
#define LINE_BYTES 64ull
#define FIRST_BYTE (16ull << 20)      /* below lie this program and what the firmware left */
#define MAPPED_BYTES (16ull << 30)    /* guest.S */
#define TICK_VECTOR 32
#define TICK_COUNT 1000000u           /* KVM's local APIC counts nanoseconds */
#define CALIBRATION_COUNT 20000000u
#define ARREARS_PER_SECOND 20         /* 1/20 s: beyond that arrears are given up, as precopy's random-writer does */
#define BATCH 32                      /* pages that a guest without a pace dirties before it says so; a step of random-writer */

/* Of the PVH boot protocol (Xen, public/arch-x86/hvm/start_info.h). */
struct start_info {
    uint32_t magic, version, flags, modules;
    uint64_t module_list, command_line, acpi, memory_map;
    uint32_t memory_map_entries, reserved;
};
struct memory_map_entry {
    uint64_t start, bytes;
    uint32_t type, reserved;
};
#define TYPE_RAM 1

struct gate {
    uint16_t low, selector, flags, middle;
    uint32_t high, reserved;
};
extern struct gate idt[256];
extern uint64_t gdt[7];
extern char task_state[], traps[32][8];
void on_tick(void);
void on_call(void);

/* What the next tick says: bit 7 set, below it the milliseconds of work done so far, modulo 128. */
volatile uint8_t tick_byte = 0x80;

static void set_gate(unsigned vector, const void *handler)
{
    uint64_t at = (uint64_t)handler;
    idt[vector] = (struct gate){ .low = (uint16_t)at, .selector = 0x08, .flags = 0x8e00, .middle = (uint16_t)(at >> 16) };
}

/* Ring 0: the tables whose entries hold split addresses. All addresses of this program are below 4 GiB. */
void prepare(void)
{
    uint64_t task = (uint64_t)task_state;
    gdt[5] = 103 | (task & 0xffffff) << 16 | 0x89ull << 40 | (task >> 24) << 56;
    for (unsigned vector = 0; vector < 32; vector++)
        set_gate(vector, traps[vector]);
    set_gate(6, (const void *)on_call);
    set_gate(TICK_VECTOR, (const void *)on_tick);
}

static void call(uint8_t byte)
{
    __asm__ volatile("ud2" : : "a"(byte) : "memory");
}
static void wait_for_tick(void) { call(0); }

_Noreturn static void fail(const char *why)
{
    while (*why)
        call((uint8_t)*why++);
    for (;;)
        wait_for_tick();
}

static uint64_t cycles(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static uint64_t random_state = 0x9e3779b97f4a7c15;
/* xorshift64 (Marsaglia 2003). */
static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint64_t next_number(const char **text)
{
    uint64_t value = 0;
    while (**text == ' ')
        ++*text;
    if (**text < '0' || **text > '9')
        fail("five numbers expected");
    while (**text >= '0' && **text <= '9')
        value = value * 10 + (uint64_t)(*(*text)++ - '0');
    return value;
}

/* Usable memory in the order of the map. Copied, for filling may overwrite the map. */
static struct { uint64_t start, pages; } ranges[8];
static unsigned range_count;

static void note_ranges(const struct start_info *info)
{
    const struct memory_map_entry *map = (const void *)info->memory_map;
    for (uint32_t at = 0; at < info->memory_map_entries && range_count < 8; at++) {
        uint64_t start = map[at].start, end = start + map[at].bytes;
        if (start < FIRST_BYTE)
            start = FIRST_BYTE;
        if (end > MAPPED_BYTES)
            end = MAPPED_BYTES;
        if (map[at].type != TYPE_RAM || end < start + PAGE_BYTES)
            continue;
        ranges[range_count].start = start;
        ranges[range_count++].pages = (end - start) / PAGE_BYTES;
    }
}

static volatile uint64_t *page_at(uint64_t page)
{
    for (unsigned at = 0; at < range_count; at++) {
        if (page < ranges[at].pages)
            return (volatile uint64_t *)(ranges[at].start + page * PAGE_BYTES);
        page -= ranges[at].pages;
    }
    fail("not so much memory");
}

static volatile uint32_t *const apic = (volatile uint32_t *)0xfee00000;
enum { SPURIOUS = 0xf0 / 4, TIMER = 0x320 / 4, INITIAL = 0x380 / 4, CURRENT = 0x390 / 4, DIVIDE = 0x3e0 / 4 };
#define TIMER_MASKED 0x10000u
#define TIMER_PERIODIC 0x20000u

struct moment {
    uint32_t count;
    uint64_t cycles;
};
/* Of several readings the one that took least: this processor may be taken away in the middle of any. */
static struct moment read_clocks(void)
{
    struct moment best = { 0, 0 };
    uint64_t shortest = ~0ull;
    for (int at = 0; at < 8; at++) {
        uint64_t before = cycles();
        uint32_t count = apic[CURRENT];
        uint64_t took = cycles() - before;
        if (took >= shortest)
            continue;
        shortest = took;
        best = (struct moment){ count, before + took / 2 };
    }
    return best;
}

static uint64_t cycles_per_second(void)
{
    apic[SPURIOUS] = 0x1ff;     /* on */
    apic[DIVIDE] = 0xb;         /* by 1 */
    apic[TIMER] = TIMER_MASKED;
    apic[INITIAL] = ~0u;
    struct moment first = read_clocks();
    while (first.count - apic[CURRENT] < CALIBRATION_COUNT)
        ;
    struct moment last = read_clocks();
    return (last.cycles - first.cycles) * 1000000000 / (first.count - last.count);
}

static void dirty_page(uint64_t working_set)
{
    uint64_t random = next_random();
    volatile uint64_t *line = page_at((random >> 32) * working_set >> 32) + random % (PAGE_BYTES / LINE_BYTES) * 8;
    for (unsigned at = 0; at < LINE_BYTES / 8; at++)
        line[at] = next_random();
}

static void tell(uint64_t dirtied, uint64_t rate)
{
    tick_byte = 0x80 | (uint8_t)(dirtied * 1000 / rate % 128);
}

/* Ring 3. */
void work(const struct start_info *info)
{
    const char *text = (const char *)info->command_line;
    uint64_t filled = next_number(&text), zeroed = next_number(&text);
    uint64_t rate = next_number(&text), working_set = next_number(&text), is_unpaced = next_number(&text);
    note_ranges(info);

    for (uint64_t page = 0; page < filled; page++)
        for (volatile uint64_t *word = page_at(page), *end = word + PAGE_BYTES / 8; word < end; word++)
            *word = next_random();
    for (uint64_t page = 0; page < zeroed; page++)
        *page_at(filled + page) = 0;

    uint64_t second = cycles_per_second();
    apic[TIMER] = TIMER_PERIODIC | TICK_VECTOR;
    apic[INITIAL] = TICK_COUNT;

    uint64_t dirtied = 0;
    while (is_unpaced) {
        for (unsigned at = 0; at < BATCH; at++)
            dirty_page(working_set);
        dirtied += BATCH;
        tell(dirtied, rate);
    }

    /* Due is in pages times cycles a second: each cycle adds the rate, each page takes off a second. */
    uint64_t last = cycles(), due = 0;
    for (;;) {
        wait_for_tick();
        if (rate == 0)
            continue;
        uint64_t now = cycles();
        due = now - last > second / ARREARS_PER_SECOND ? 0 : due + (now - last) * rate;
        last = now;
        for (; due >= second; due -= second) {
            dirty_page(working_set);
            dirtied++;
        }
        tell(dirtied, rate);
    }
}
