/* A node library that tries to leave its sandbox. The node does what "how" says to "path", and fails with
 * what came of it: "refused: " and the system's reason, or "it worked". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node.h"

static kg_str text(const char *s) {
  kg_str view = {s, strlen(s)};
  return view;
}

static int copy(const kg_value *value, char *to, size_t size) {
  kg_str from;
  if (value->kind != KG_STRING) return -1;
  from = value->as.string->text;
  if (from.len + 1 > size) return -1;
  memcpy(to, from.ptr, from.len);
  to[from.len] = 0;
  return 0;
}

static int attempt(const char *how, const char *path) {
  char byte;
  int file, status;
  pid_t child;
  struct sockaddr_in there = {0};
  if (strcmp(how, "read") == 0) {
    file = open(path, O_RDONLY);
    return file < 0 || read(file, &byte, 1) < 0 ? -1 : 0;
  }
  if (strcmp(how, "write") == 0) return open(path, O_WRONLY | O_CREAT, 0600) < 0 ? -1 : 0;
  if (strcmp(how, "link") == 0) return symlink("/etc/passwd", path);
  if (strcmp(how, "connect") == 0) {
    there.sin_family = AF_INET;
    there.sin_port = htons((unsigned short)atoi(path));
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    file = socket(AF_INET, SOCK_STREAM, 0);
    return file < 0 ? -1 : connect(file, (struct sockaddr *)&there, sizeof there);
  }
  if (strcmp(how, "unix") == 0) return socket(AF_UNIX, SOCK_STREAM, 0) < 0 ? -1 : 0;
  if (strcmp(how, "kill") == 0) return kill((pid_t)atoi(path), 0);
  if (strcmp(how, "execute") == 0) {
    child = fork();
    if (child < 0) return -1;
    if (child == 0) {
      execl(path, path, (char *)NULL);
      _exit(errno & 0x7f);
    }
    if (waitpid(child, &status, 0) < 0) return -1;
    errno = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    return errno == 0 ? 0 : -1;
  }
  errno = EINVAL;
  return -1;
}

static kg_status run(uint32_t node, const kg_context *context, const kg_value *inputs,
                     size_t n_inputs, kg_value *outputs, size_t n_outputs) {
  char how[64], path[4096], said[256];
  (void)node;
  (void)outputs;
  (void)n_outputs;
  if (n_inputs != 2 || copy(&inputs[0], how, sizeof how) != 0 || copy(&inputs[1], path, sizeof path) != 0) {
    context->fail(context, text("how"), text("is too long"));
    return KG_ERROR;
  }
  if (attempt(how, path) == 0) {
    context->fail(context, text("how"), text("it worked"));
    return KG_ERROR;
  }
  snprintf(said, sizeof said, "refused: %s", strerror(errno));
  context->fail(context, text("how"), text(said));
  return KG_ERROR;
}

const kg_library *kosmograph_library_v1(void) {
  static kg_library library = {sizeof library, KG_ABI_MAJOR, KG_ABI_MINOR, {NULL, 0}, run, NULL};
  library.descriptor = text(
      "{\"name\":\"escapes\",\"version\":\"1\",\"nodes\":[{\"class\":\"Escape\",\"inputs\":["
      "{\"name\":\"how\",\"type\":\"STRING\",\"default\":\"\"},"
      "{\"name\":\"path\",\"type\":\"STRING\",\"default\":\"\"}],\"outputs\":[],"
      "\"output_node\":true,\"pure\":false}]}");
  return &library;
}
