/* A plugin of qemu's user mode that counts the instructions which a program executes, all threads together, and says so on
 * standard error at its end. scripts/aarch64 compiles it:
 *
 *   cc -O2 -shared -fPIC -o libinstructions.so scripts/qemu_instructions.c
 *   qemu-aarch64 -plugin ./libinstructions.so PROGRAM
 *
 * Debian's qemu-user comes without the header and without any plugin, so the few functions that are needed are declared here.
 * Threads add to one sum without a lock: exact where one thread computes. */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*translated)(uint64_t id, struct qemu_plugin_tb *block));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *to, uint64_t value);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*at_exit)(uint64_t id, void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

#define EXPORT __attribute__((visibility("default")))
enum { ADD_U64 = 0 };

/* The plugin interface's version, which qemu looks at. */
EXPORT int qemu_plugin_version = 1;

static uint64_t instructions;

static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &instructions, qemu_plugin_tb_n_insns(block));
}

static void at_exit(uint64_t id, void *data)
{
	(void)id;
	(void)data;
	fprintf(stderr, "%" PRIu64 " instructions\n", instructions);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int count, char **arguments)
{
	(void)info;
	(void)count;
	(void)arguments;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
