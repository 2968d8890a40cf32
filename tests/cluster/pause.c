/* The first process of every pod: it holds the pod's namespaces and waits to be told to go. */
#include <signal.h>
#include <unistd.h>

static void leave(int number) { _exit(0); }

int main(void) {
  signal(SIGTERM, leave);
  signal(SIGINT, leave);
  for (;;) pause();
}
