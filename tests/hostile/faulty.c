/* A node library with one fault, chosen by -DFAULT=…: the tests of isolation build a few of them, scripts/attack
 * builds all that FAULTS below names. Its node Faulty takes an IMAGE and, but for the fault, gives it on. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "node.h"

/* scripts/attack reads the names out of this list. */
#define FAULTS(X)                                                                                  \
  /* While the node runs: the process ends or hangs. */                                            \
  X(segv) X(segv_elsewhere) X(abort) X(exit0) X(exit7) X(quick_exit0) X(quick_exit9) X(stack)      \
  X(division) X(illegal) X(bus) X(trap_in_thread) X(exec) X(sigterm) X(sigint) X(sigkill)          \
  X(sigpipe) X(sigstop) X(alarm) X(loop) X(sleep) X(deaf) X(fork_hangs) X(fork_returns)            \
  X(kill_group)                                                                                    \
  /* The process lives on and is not what it was. */                                               \
  X(close0) X(close1) X(close2) X(close_all) X(stdout_text) X(forged) X(forged_half) X(chdir)      \
  X(umask) X(limit_file) X(limit_open) X(limit_cpu) X(limit_data) X(handler) X(handler_int)        \
  X(mask) X(altstack) X(environment) X(locale) X(late_call) X(late_crash) X(late_loop)             \
  X(atexit_crash) X(atexit_hang) X(atexit_exit0)                                                   \
  /* Memory and values. */                                                                         \
  X(write_past) X(double_release) X(free_host) X(allocates) X(huge_tensor) X(dangling)             \
  X(null_tensor) X(wrong_kind) X(status99) X(no_output) X(silent_error) X(bad_utf8) X(bad_output)  \
  X(output_outside) X(output_untrue) X(output_untold) X(output_unnamed) X(not_numbers)             \
  X(seven_channels) X(too_small) X(log_flood) X(progress_flood)                                    \
  /* Before any node runs. */                                                                      \
  X(ctor_segv) X(ctor_abort) X(ctor_exit0) X(ctor_exit3) X(ctor_hang) X(ctor_close) X(ctor_text)   \
  X(ctor_fork) X(ctor_deaf) X(desc_dangling) X(desc_large) X(desc_null) X(desc_bad_utf8)           \
  X(desc_no_json) X(desc_deep) X(desc_twice) X(symbol_null) X(symbol_segv) X(symbol_hang)          \
  X(size0) X(major9) X(no_run)

#define X(name) f_##name,
enum fault { f_none, FAULTS(X) };
#undef X
#define NAMED(name) f_##name
#define CHOSEN(name) NAMED(name)
static const volatile enum fault fault = CHOSEN(FAULT);

#define DESCRIPTOR                                                                                 \
  "{\"name\":\"faulty\",\"version\":\"1\",\"nodes\":[{\"class\":\"Faulty\",\"inputs\":"            \
  "[{\"name\":\"image\",\"type\":\"IMAGE\"}],\"outputs\":[{\"name\":\"image\",\"type\":"           \
  "\"IMAGE\"}],\"pure\":false}]}"

static volatile uintptr_t sink;
static const kg_context *kept;

static kg_str text(const char *s) {
  kg_str view = {s, strlen(s)};
  return view;
}

/* An address that nothing is mapped at, in a way that the compiler does not see through. */
static void *nowhere(void) {
  static volatile uintptr_t address = 0xdead0000;
  return (void *)address;
}

static void crash(void) { *(volatile int *)nowhere() = 1; }
static void hang(void) {
  for (;;) sleep(1);
}
static void leave(void) { _exit(0); }
static void swallow(int signal) { sink += (uintptr_t)signal; }

static int (*volatile again)(int);
static int recurse(int n) {
  volatile char page[4096];
  page[n & 4095] = (char)n;
  return again(n + 1) + page[17];
}

static void *call_late(void *unused) {
  usleep(50000);
  for (int i = 0; i < 200; i++) {
    kept->progress(kept, (uint64_t)i, 200);
    kept->log(kept, KG_LOG_WARN, text("said after the call returned"));
    kept->fail(kept, text(""), text("failed after the call returned"));
    usleep(1000);
  }
  return unused;
}
static void *crash_late(void *unused) {
  usleep(20000);
  crash();
  return unused;
}
static void *crash_now(void *unused) {
  crash();
  return unused;
}
static void *spin(void *unused) {
  for (;;) sink++;
  return unused;
}

static void in_thread(void *(*what)(void *)) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, what, NULL) == 0) pthread_detach(thread);
}

static void limit(int which, rlim_t most) {
  struct rlimit limit = {most, most};
  if (setrlimit((__rlimit_resource_t)which, &limit) != 0) sink++;
}

/* Writes to every open descriptor past standard error that can be written. */
static void to_every_descriptor(const char *line) {
  for (int fd = 3; fd < 256; fd++) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) continue;
    struct stat about;
    /* Not into files: a library could always do that, and it is no fault of the pipe's. */
    if (fstat(fd, &about) != 0 || S_ISREG(about.st_mode)) continue;
    if (write(fd, line, strlen(line)) < 0) sink++;
  }
}

static kg_status give(kg_value *out, kg_tensor *tensor) {
  if (tensor == NULL) return KG_ERROR;
  out[0].kind = KG_TENSOR;
  out[0].as.tensor = tensor;
  return KG_OK;
}

static kg_tensor *picture(const kg_context *context, int64_t size, int64_t channels) {
  DLDataType f32 = {kDLFloat, 32, 1};
  int64_t shape[4] = {1, size, size, channels};
  return context->new_tensor(context, f32, 4, shape);
}

/* A tensor of one's own that says it is far larger than its memory. */
static void keep(kg_counted *self) { sink += self->size; }
static DLManagedTensorVersioned *no_copy(kg_tensor *self) {
  sink += self->base.size;
  return NULL;
}
static kg_tensor *too_small(void) {
  static float value[1];
  static int64_t shape[4] = {1, 8192, 8192, 3};
  static DLManagedTensorVersioned managed;
  static kg_tensor tensor;
  managed.version.major = DLPACK_MAJOR_VERSION;
  managed.dl_tensor.data = value;
  managed.dl_tensor.device.device_type = kDLCPU;
  managed.dl_tensor.ndim = 4;
  managed.dl_tensor.dtype.code = kDLFloat;
  managed.dl_tensor.dtype.bits = 32;
  managed.dl_tensor.dtype.lanes = 1;
  managed.dl_tensor.shape = shape;
  tensor.base.size = sizeof tensor;
  tensor.base.retain = keep;
  tensor.base.release = keep;
  tensor.dl = &managed;
  tensor.to_dlpack = no_copy;
  return &tensor;
}

/* An IMAGE as it should be. */
/* A picture of one grey pixel. */
static const unsigned char PIXEL[] = {
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0,
    0, 0, 58, 126, 155, 85, 0, 0, 0, 10, 73, 68, 65, 84, 120, 156, 99, 104, 0, 0, 0, 130, 0, 129,
    119, 205, 114, 182, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
};

/* Writes a file as node.h's `output` says, gives it its name if it is to have one, and tells nobody. */
static void named(const kg_context *context, int is_named) {
  char hidden[4096], own[4096];
  kg_str folder = {NULL, 0};
  context->property(context, text("output_directory"), &folder);
  snprintf(hidden, sizeof hidden, "%.*s/.faulty.tmp", (int)folder.len, folder.ptr);
  snprintf(own, sizeof own, "%.*s/untold.png", (int)folder.len, folder.ptr);
  FILE *file = fopen(hidden, "w");
  if (file == NULL) abort();
  fwrite(PIXEL, 1, sizeof PIXEL, file);
  fclose(file);
  context->output(context, text("{\"making\":{\"filename\":\".faulty.tmp\",\"subfolder\":\"\","
                                "\"type\":\"output\"}}"));
  if (is_named && rename(hidden, own) != 0) abort();
}

static int is_image(const kg_value *value) {
  if (value->kind != KG_TENSOR) return 0;
  const DLTensor *dl = &value->as.tensor->dl->dl_tensor;
  if (dl->ndim != 4 || dl->dtype.code != kDLFloat || dl->dtype.bits != 32) return 0;
  for (int axis = 0; axis < 4; axis++)
    if (dl->shape[axis] <= 0) return 0;
  return dl->shape[3] != 2 && dl->shape[3] <= 4;
}

static kg_status run(uint32_t node, const kg_context *context, const kg_value *inputs,
                     size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  if (node != 0 || n_inputs != 1 || n_outputs != 1 || !is_image(&inputs[0])) {
    context->fail(context, text("image"), text("an image is wanted"));
    return KG_ERROR;
  }
  kg_counted *image = inputs[0].as.counted;
  char *memory;
  sigset_t all;
  stack_t stack;
  switch (fault) {
    case f_segv: crash(); break;
    case f_segv_elsewhere: kill(getpid(), SIGSEGV); break;
    case f_abort: abort();
    case f_exit0: exit(0);
    case f_exit7: exit(7);
    case f_quick_exit0: _exit(0);
    case f_quick_exit9: _exit(9);
    case f_stack: again = recurse; return again(0);
    case f_division: raise(SIGFPE); break;
    case f_illegal: __builtin_trap();
    case f_bus:
      memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                    memfd_create("short", 0), 0);
      *(volatile char *)memory = 1;
      break;
    case f_trap_in_thread: in_thread(crash_now); hang(); break;
    case f_exec: execl("/bin/true", "true", (char *)NULL); break;
    case f_sigterm: raise(SIGTERM); sleep(1); break;
    case f_sigint: kill(getpid(), SIGINT); sleep(1); break;
    case f_sigkill: raise(SIGKILL); break;
    case f_sigpipe: signal(SIGPIPE, SIG_DFL); raise(SIGPIPE); break;
    case f_sigstop: raise(SIGSTOP); break;
    case f_alarm: alarm(1); hang(); break;
    case f_loop:
      for (;;) sink++;
    case f_sleep: sleep(30); break;
    case f_deaf:
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, NULL);
      signal(SIGINT, SIG_IGN);
      signal(SIGTERM, SIG_IGN);
      hang();
      break;
    case f_fork_hangs:
      if (fork() == 0) {
        sleep(5);
        _exit(0);
      }
      abort();
    case f_fork_returns: fork(); break;
    case f_kill_group: kill(0, SIGTERM); sleep(1); break;

    case f_close0: close(0); break;
    case f_close1: close(1); break;
    case f_close2: close(2); break;
    case f_close_all:
      for (int fd = 0; fd < 256; fd++) close(fd);
      break;
    case f_stdout_text:
      printf("{\"event\":\"done\",\"seconds\":0,\"executed\":0,\"cached\":0,\"failed\":0}\n");
      fflush(stdout);
      break;
    case f_forged:
      to_every_descriptor("\n{\"event\":\"output\",\"node\":\"no such node\",\"output\":{},"
                          "\"files\":[\"/no/such/file.png\"]}\n");
      break;
    case f_forged_half: to_every_descriptor("{\"event\":\"output\",\"no"); _exit(0);
    case f_chdir:
      if (chdir("/") != 0) sink++;
      break;
    case f_umask: umask(0777); break;
    case f_limit_file: limit(RLIMIT_FSIZE, 0); break;
    case f_limit_open: limit(RLIMIT_NOFILE, 3); break;
    case f_limit_cpu: limit(RLIMIT_CPU, 1); hang(); break;
    case f_limit_data: limit(RLIMIT_DATA, 1 << 20); break;
    case f_handler: signal(SIGSEGV, swallow); signal(SIGTERM, swallow); break;
    case f_handler_int: signal(SIGINT, SIG_IGN); break;
    case f_mask:
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, NULL);
      break;
    case f_altstack:
      memset(&stack, 0, sizeof stack);
      stack.ss_flags = SS_DISABLE;
      sigaltstack(&stack, NULL);
      break;
    case f_environment: clearenv(); break;
    case f_locale:
      setenv("LC_ALL", "tr_TR.UTF-8", 1);
      setlocale(LC_ALL, "");
      break;
    case f_late_call: kept = context; in_thread(call_late); break;
    case f_late_crash: in_thread(crash_late); break;
    case f_late_loop: in_thread(spin); break;
    case f_atexit_crash: atexit(crash); break;
    case f_atexit_hang: atexit(hang); break;
    case f_atexit_exit0: atexit(leave); break;

    case f_write_past:
      for (volatile size_t i = 0; i < 200; i++) {
        outputs[i].kind = KG_INT;
        outputs[i].as.integer = 0x4141414141414141;
      }
      return KG_OK;
    case f_double_release: image->release(image); image->release(image); break;
    case f_free_host:
      memory = (char *)image;
      free(memory);
      break;
    case f_allocates:
      for (size_t i = 0; i < 4096; i++) {
        memory = malloc(64 << 20);
        if (memory == NULL) abort();
        memset(memory, 1, 64 << 20);
      }
      break;
    case f_huge_tensor: return give(outputs, picture(context, 1 << 21, 3));
    case f_dangling: return give(outputs, nowhere());
    case f_null_tensor: outputs[0].kind = KG_TENSOR; return KG_OK;
    case f_wrong_kind: outputs[0].kind = 77; return KG_OK;
    case f_status99: return 99;
    case f_no_output: return KG_OK;
    case f_silent_error: return KG_ERROR;
    case f_bad_utf8: {
      kg_str bad = {"bad \xff\xfe\n\x1b[31m", 11};
      context->fail(context, bad, bad);
      return KG_ERROR;
    }
    case f_bad_output: context->output(context, text("{nope")); break;
    case f_output_outside:
      context->output(context, text("{\"images\":[{\"filename\":\"../../passwd\",\"subfolder\":"
                                    "\"..\",\"type\":\"output\"},{\"filename\":5}]}"));
      break;
    case f_output_untrue:
      context->output(context, text("{\"images\":[{\"filename\":\"none_00001_.png\","
                                    "\"subfolder\":\"\",\"type\":\"output\"}]}"));
      break;
    case f_output_untold: named(context, 1); crash(); break;
    case f_output_unnamed: named(context, 0); crash(); break;
    case f_not_numbers: {
      kg_tensor *made = picture(context, 64, 3);
      if (made == NULL) return KG_ERROR;
      float *values = made->dl->dl_tensor.data;
      volatile float zero = 0;
      for (int i = 0; i < 64 * 64 * 3; i++) values[i] = i % 2 ? zero / zero : 1 / zero;
      return give(outputs, made);
    }
    case f_seven_channels: return give(outputs, picture(context, 64, 7));
    case f_too_small: return give(outputs, too_small());
    case f_log_flood:
      memory = malloc(1 << 20);
      if (memory == NULL) return KG_ERROR;
      memset(memory, 'x', 1 << 20);
      for (int i = 0; i < 64; i++) {
        kg_str line = {memory, 1 << 20};
        context->log(context, KG_LOG_WARN, line);
      }
      free(memory);
      break;
    case f_progress_flood:
      for (uint64_t i = 0; i < 1000000; i++) context->progress(context, i, 1000000);
      break;
    default: break;
  }
  image->retain(image);
  outputs[0] = inputs[0];
  return KG_OK;
}

__attribute__((constructor)) static void constructor(void) {
  switch (fault) {
    case f_ctor_segv: crash(); break;
    case f_ctor_abort: abort();
    case f_ctor_exit0: exit(0);
    case f_ctor_exit3: exit(3);
    case f_ctor_hang: hang(); break;
    case f_ctor_close:
      for (int fd = 0; fd < 256; fd++) close(fd);
      break;
    case f_ctor_text: to_every_descriptor("{\"half a line"); puts("{}"); break;
    case f_ctor_fork:
      if (fork() == 0) {
        sleep(5);
        _exit(0);
      }
      abort();
    case f_ctor_deaf:
      signal(SIGINT, SIG_IGN);
      signal(SIGTERM, SIG_IGN);
      hang();
      break;
    default: break;
  }
}

const kg_library *kosmograph_library_v1(void) {
  static kg_library library = {sizeof library, KG_ABI_MAJOR, KG_ABI_MINOR, {NULL, 0}, run, NULL};
  static char *large;
  size_t length = 100 << 20;
  library.descriptor = text(DESCRIPTOR);
  switch (fault) {
    case f_desc_dangling:
      library.descriptor.ptr = nowhere();
      library.descriptor.len = 100;
      break;
    case f_desc_large:
      large = malloc(length + sizeof DESCRIPTOR);
      if (large == NULL) return NULL;
      memset(large, ' ', length);
      memcpy(large + length, DESCRIPTOR, sizeof DESCRIPTOR);
      library.descriptor.ptr = large;
      library.descriptor.len = length + sizeof DESCRIPTOR - 1;
      break;
    case f_desc_null:
      library.descriptor.ptr = NULL;
      library.descriptor.len = 100;
      break;
    case f_desc_bad_utf8: library.descriptor = text("{\"name\":\"\xff\xfe\"}"); break;
    case f_desc_no_json: library.descriptor = text("hello"); break;
    case f_desc_deep:
      length = 200000;
      large = malloc(length);
      if (large == NULL) return NULL;
      memset(large, '[', length);
      library.descriptor.ptr = large;
      library.descriptor.len = length;
      break;
    case f_desc_twice:
      library.descriptor = text("{\"name\":\"faulty\",\"version\":\"1\",\"nodes\":[{\"class\":"
                                "\"Faulty\",\"inputs\":[],\"outputs\":[]},{\"class\":\"Faulty\","
                                "\"inputs\":[],\"outputs\":[]}]}");
      break;
    case f_symbol_null: return NULL;
    case f_symbol_segv: crash(); break;
    case f_symbol_hang: hang(); break;
    case f_size0: library.size = 0; break;
    case f_major9: library.abi_major = 9; break;
    case f_no_run: library.run = NULL; break;
    default: break;
  }
  return &library;
}
