/*
 * The least that can carry a populated memory image over TCP: what precopy's page channels are compared with. And how fast memory can be read.
 *
 *   page-walk receive BYTES CHANNELS small|huge              accepts on a free port of loopback, stores into fresh anonymous memory
 *   page-walk send BYTES CHANNELS small|huge PORT FILLED     fills the first FILLED bytes of an image, then sends them
 *   page-walk read BYTES small|huge                          reads populated memory once for each line of its input, on one core
 *
 * Each prints one line of JSON when it is ready, and one with its figures. `send` and `read` begin at a line of their input. A stripe of 2 MiB
 * goes out with one writev: a header of (offset u64, bytes u64), then the bytes. Stripes go to channels in turn; a header of zeros ends a
 * channel, and the receiver acknowledges it with one byte when all before it is stored. Both ends are one host: byte order does not matter.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define STRIPE_BYTES (2ul << 20) /* STRIPE_PAGES of packages/protocol/src/limits.ts */
#define HUGE_PAGE_BYTES (2ul << 20)
#define CHANNELS_MAX 16
#define POLL_MS 200    /* SOCKET_POLL_MS */
#define DEAD_MS 10000  /* SOCKET_DEAD_MS */
#define CONGESTION_CONTROL "cubic"

struct header {
  uint64_t offset;
  uint64_t bytes;
};

struct channel {
  pthread_t thread;
  int fd;
  size_t first; /* the stripe it begins at */
  size_t stored;
};

static uint8_t *image;
static size_t image_bytes, filled_bytes;
static size_t channel_count;
static struct channel channels[CHANNELS_MAX];
static pthread_barrier_t begin;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void check(int is_right, const char *what) {
  if (is_right) return;
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Of all threads, in user and kernel mode. */
static double cpu_seconds(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) fail("getrusage");
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static size_t number(const char *text) {
  char *end;
  unsigned long long value = strtoull(text, &end, 10);
  check(*text != '\0' && *end == '\0', "a number was expected");
  return (size_t)value;
}

/* Fresh memory that begins at a huge page, so that `huge` can mean all of it. */
static uint8_t *map_memory(size_t bytes, const char *pages) {
  uint8_t *mapped = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) fail("mmap");
  uint8_t *aligned = (uint8_t *)(((uintptr_t)mapped + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1));
  if (madvise(aligned, bytes, strcmp(pages, "huge") == 0 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0) fail("madvise");
  return aligned;
}

static void fill_random(uint8_t *at, size_t bytes) {
  uint64_t x = 0x9e3779b97f4a7c15;
  for (uint64_t *word = (uint64_t *)at, *end = word + bytes / 8; word < end; word++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *word = x;
  }
}

static int await_line(void) {
  char line[64];
  return fgets(line, sizeof line, stdin) != NULL;
}

static void set_option(int fd, int level, int option, const void *value, socklen_t bytes) {
  if (setsockopt(fd, level, option, value, bytes) != 0) fail("setsockopt");
}

/* As BlockingSocket of packages/linux/src/socket.ts. */
static void set_up_socket(int fd) {
  struct timeval wait = {POLL_MS / 1000, POLL_MS % 1000 * 1000};
  int one = 1, dead_ms = DEAD_MS;
  set_option(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  set_option(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_ms, sizeof dead_ms);
}

static int may_retry(void) { return errno == EAGAIN || errno == EINTR; }

static void receive_all(int fd, void *into, size_t bytes) {
  for (uint8_t *at = into, *end = at + bytes; at < end;) {
    ssize_t got = recv(fd, at, (size_t)(end - at), 0);
    if (got > 0) at += got;
    else if (got == 0) check(0, "the other end hung up");
    else if (!may_retry()) fail("recv");
  }
}

static void write_all(int fd, struct iovec *pieces, int count) {
  while (count > 0) {
    ssize_t written = writev(fd, pieces, count);
    if (written < 0) {
      if (!may_retry()) fail("writev");
      continue;
    }
    for (; count > 0 && (size_t)written >= pieces->iov_len; pieces++, count--) written -= (ssize_t)pieces->iov_len;
    if (count == 0) return;
    pieces->iov_base = (uint8_t *)pieces->iov_base + written;
    pieces->iov_len -= (size_t)written;
  }
}

static void *receive_channel(void *argument) {
  struct channel *channel = argument;
  for (;;) {
    struct header header;
    receive_all(channel->fd, &header, sizeof header);
    if (header.bytes == 0) break;
    check(header.offset <= image_bytes && header.bytes <= image_bytes - header.offset, "a stripe outside the image");
    receive_all(channel->fd, image + header.offset, header.bytes);
    channel->stored += header.bytes;
  }
  if (send(channel->fd, "", 1, MSG_NOSIGNAL) != 1) fail("send");
  return NULL;
}

static void *send_channel(void *argument) {
  struct channel *channel = argument;
  pthread_barrier_wait(&begin);
  for (size_t stripe = channel->first; stripe * STRIPE_BYTES < filled_bytes; stripe += channel_count) {
    size_t offset = stripe * STRIPE_BYTES, left = filled_bytes - offset;
    struct header header = {offset, left < STRIPE_BYTES ? left : STRIPE_BYTES};
    struct iovec pieces[2] = {{&header, sizeof header}, {image + offset, header.bytes}};
    write_all(channel->fd, pieces, 2);
  }
  struct header last = {0, 0};
  struct iovec piece = {&last, sizeof last};
  uint8_t acknowledged;
  write_all(channel->fd, &piece, 1);
  receive_all(channel->fd, &acknowledged, 1);
  return NULL;
}

static void start_threads(void *(*run)(void *)) {
  for (size_t at = 0; at < channel_count; at++)
    check(pthread_create(&channels[at].thread, NULL, run, &channels[at]) == 0, "no thread for a channel");
}

static void join_threads(void) {
  for (size_t at = 0; at < channel_count; at++) pthread_join(channels[at].thread, NULL);
}

static void receive_image(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t at_bytes = sizeof at;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, CHANNELS_MAX) != 0) fail("listen");
  if (getsockname(listener, (struct sockaddr *)&at, &at_bytes) != 0) fail("getsockname");
  printf("{\"type\":\"listening\",\"port\":%d}\n", ntohs(at.sin_port));
  for (size_t channel = 0; channel < channel_count; channel++) {
    channels[channel].fd = accept(listener, NULL, NULL);
    if (channels[channel].fd < 0) fail("accept");
    set_up_socket(channels[channel].fd);
  }
  double cpu_before = cpu_seconds();
  start_threads(receive_channel);
  join_threads();
  size_t stored = 0;
  for (size_t channel = 0; channel < channel_count; channel++) stored += channels[channel].stored;
  printf("{\"type\":\"received\",\"bytes\":%zu,\"cpuSeconds\":%.6f}\n", stored, cpu_seconds() - cpu_before);
}

static void send_image(uint16_t port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
  fill_random(image, filled_bytes);
  for (size_t channel = 0; channel < channel_count; channel++) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0) fail("connect");
    set_up_socket(fd);
    /* Where the kernel does not let this user have it, its default stays, as with ours. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, CONGESTION_CONTROL, strlen(CONGESTION_CONTROL));
    channels[channel].fd = fd;
    channels[channel].first = channel;
  }
  pthread_barrier_init(&begin, NULL, (unsigned)channel_count + 1);
  start_threads(send_channel);
  printf("{\"type\":\"ready\"}\n");
  check(await_line(), "nobody said when to begin");
  double cpu_before = cpu_seconds(), started = seconds();
  pthread_barrier_wait(&begin);
  join_threads();
  double ended = seconds();
  printf("{\"type\":\"sent\",\"ms\":%.3f,\"bytes\":%zu,\"cpuSeconds\":%.6f}\n", (ended - started) * 1e3, filled_bytes,
         cpu_seconds() - cpu_before);
}

/* Both readers take a multiple of 256 bytes and return something that depends on every one of them. */
static uint64_t read_words(const uint8_t *from, size_t bytes) {
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (const uint64_t *at = (const uint64_t *)from, *end = at + bytes / 8; at < end; at += 8) {
    a |= at[0] | at[4];
    b |= at[1] | at[5];
    c |= at[2] | at[6];
    d |= at[3] | at[7];
  }
  return a | b | c | d;
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static uint64_t read_vectors(const uint8_t *from, size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (const __m256i *at = (const __m256i *)from, *end = at + bytes / 32; at < end; at += 8) {
    a = _mm256_or_si256(a, _mm256_or_si256(_mm256_load_si256(at), _mm256_load_si256(at + 4)));
    b = _mm256_or_si256(b, _mm256_or_si256(_mm256_load_si256(at + 1), _mm256_load_si256(at + 5)));
    c = _mm256_or_si256(c, _mm256_or_si256(_mm256_load_si256(at + 2), _mm256_load_si256(at + 6)));
    d = _mm256_or_si256(d, _mm256_or_si256(_mm256_load_si256(at + 3), _mm256_load_si256(at + 7)));
  }
  a = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
  return (uint64_t)(_mm256_extract_epi64(a, 0) | _mm256_extract_epi64(a, 1) | _mm256_extract_epi64(a, 2) | _mm256_extract_epi64(a, 3));
}
#endif

static void read_image(void) {
  uint64_t (*read_all)(const uint8_t *, size_t) = read_words;
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) read_all = read_vectors;
#endif
  fill_random(image, image_bytes);
  uint64_t expected = read_words(image, image_bytes);
  printf("{\"type\":\"ready\"}\n");
  while (await_line()) {
    double started = seconds();
    uint64_t all = read_all(image, image_bytes);
    double took = seconds() - started;
    check(all == expected, "the readers disagree");
    printf("{\"type\":\"read\",\"gibPerSecond\":%.3f}\n", (double)image_bytes / took / (double)(1ul << 30));
  }
}

int main(int count, char **arguments) {
  const char *mode = count > 1 ? arguments[1] : "";
  int is_receiver = strcmp(mode, "receive") == 0 && count == 5;
  int is_sender = strcmp(mode, "send") == 0 && count == 7;
  int is_reader = strcmp(mode, "read") == 0 && count == 4;
  check(is_receiver || is_sender || is_reader, "usage: page-walk receive|send|read ...; the source says what follows");
  setvbuf(stdout, NULL, _IOLBF, 0);
  image_bytes = number(arguments[2]);
  check(image_bytes > 0 && image_bytes % 4096 == 0, "whole pages of 4 KiB were expected");
  image = map_memory(image_bytes, arguments[is_reader ? 3 : 4]);
  if (is_reader) {
    read_image();
    return 0;
  }
  channel_count = number(arguments[3]);
  check(channel_count >= 1 && channel_count <= CHANNELS_MAX, "1 to 16 channels were expected");
  if (is_receiver) receive_image();
  else {
    filled_bytes = number(arguments[6]);
    check(filled_bytes <= image_bytes && filled_bytes % 4096 == 0, "more was to be filled than there is");
    send_image((uint16_t)number(arguments[5]));
  }
  return 0;
}
