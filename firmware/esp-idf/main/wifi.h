/* A Wi-Fi station that connects, and connects again. */
#ifndef WIFI_H
#define WIFI_H

/* Returns when there is an address. */
void wifi_start(const char *ssid, const char *password);

#endif
