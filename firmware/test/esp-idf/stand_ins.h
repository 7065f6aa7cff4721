/* What the example uses of ESP-IDF 5, declared by hand so that its C can be checked without ESP-IDF: names and types
 * as documented there, nothing behind them. Every header that the example includes is this one. */
#ifndef ESP_IDF_STAND_INS_H
#define ESP_IDF_STAND_INS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CONFIG_STREAMSPLIT_WIFI_SSID "network"
#define CONFIG_STREAMSPLIT_WIFI_PASSWORD "password"
#define CONFIG_STREAMSPLIT_URL "ws://192.168.1.10:8888/v1/stream"
#define CONFIG_STREAMSPLIT_ID "esp32-1"
#define CONFIG_STREAMSPLIT_TOKEN ""
#define CONFIG_STREAMSPLIT_QUANTIZERS 0
#define CONFIG_STREAMSPLIT_PIN_BCLK 4
#define CONFIG_STREAMSPLIT_PIN_WS 5
#define CONFIG_STREAMSPLIT_PIN_DIN 6

typedef int esp_err_t;
#define ESP_OK 0
#define ESP_ERR_NVS_NO_FREE_PAGES 0x110d
#define ESP_ERR_NVS_NEW_VERSION_FOUND 0x1110
void abort(void);
#define ESP_ERROR_CHECK(x)                                                                                             \
    do {                                                                                                               \
        if ((x) != ESP_OK)                                                                                             \
            abort();                                                                                                   \
    } while (0)
#define ESP_LOGE(tag, ...) (printf("%s ", tag), printf(__VA_ARGS__))
#define ESP_LOGW ESP_LOGE
#define ESP_LOGI ESP_LOGE
uint32_t esp_random(void);
int64_t esp_timer_get_time(void);
esp_err_t nvs_flash_init(void);
esp_err_t nvs_flash_erase(void);

/* FreeRTOS */
typedef uint32_t TickType_t;
typedef int BaseType_t;
typedef unsigned UBaseType_t;
typedef struct QueueDefinition *SemaphoreHandle_t;
typedef struct tskTaskControlBlock *TaskHandle_t;
typedef void (*TaskFunction_t)(void *);
#define portMAX_DELAY ((TickType_t)0xffffffffu)
#define portNUM_PROCESSORS 2
#define pdMS_TO_TICKS(ms) ((TickType_t)(ms) / 10)
SemaphoreHandle_t xSemaphoreCreateMutex(void);
SemaphoreHandle_t xSemaphoreCreateBinary(void);
BaseType_t xSemaphoreTake(SemaphoreHandle_t semaphore, TickType_t ticks);
BaseType_t xSemaphoreGive(SemaphoreHandle_t semaphore);
BaseType_t xTaskCreatePinnedToCore(TaskFunction_t code, const char *name, uint32_t stack, void *user,
                                   UBaseType_t priority, TaskHandle_t *made, BaseType_t core);
void vTaskDelay(TickType_t ticks);

/* I2S */
typedef int gpio_num_t;
typedef struct i2s_channel_obj_t *i2s_chan_handle_t;
typedef struct {
    int id, role;
} i2s_chan_config_t;
typedef struct {
    uint32_t sample_rate_hz;
} i2s_std_clk_config_t;
typedef struct {
    int data_bit_width, slot_mode;
} i2s_std_slot_config_t;
typedef struct {
    gpio_num_t mclk, bclk, ws, dout, din;
} i2s_std_gpio_config_t;
typedef struct {
    i2s_std_clk_config_t clk_cfg;
    i2s_std_slot_config_t slot_cfg;
    i2s_std_gpio_config_t gpio_cfg;
} i2s_std_config_t;
typedef struct {
    void *data;
    size_t size;
} i2s_event_data_t;
typedef bool (*i2s_isr_callback_t)(i2s_chan_handle_t handle, i2s_event_data_t *event, void *user_ctx);
typedef struct {
    i2s_isr_callback_t on_recv, on_recv_q_ovf, on_sent, on_send_q_ovf;
} i2s_event_callbacks_t;
enum { I2S_NUM_AUTO, I2S_ROLE_MASTER, I2S_DATA_BIT_WIDTH_32BIT, I2S_SLOT_MODE_MONO };
#define I2S_GPIO_UNUSED ((gpio_num_t)-1)
#define I2S_CHANNEL_DEFAULT_CONFIG(number, kind) {.id = number, .role = kind}
#define I2S_STD_CLK_DEFAULT_CONFIG(rate) {.sample_rate_hz = rate}
#define I2S_STD_PHILIPS_SLOT_DEFAULT_CONFIG(width, mode) {.data_bit_width = width, .slot_mode = mode}
esp_err_t i2s_new_channel(const i2s_chan_config_t *config, i2s_chan_handle_t *tx, i2s_chan_handle_t *rx);
esp_err_t i2s_channel_init_std_mode(i2s_chan_handle_t handle, const i2s_std_config_t *config);
esp_err_t i2s_channel_register_event_callback(i2s_chan_handle_t handle, const i2s_event_callbacks_t *callbacks,
                                              void *user);
esp_err_t i2s_channel_enable(i2s_chan_handle_t handle);
esp_err_t i2s_channel_read(i2s_chan_handle_t handle, void *dest, size_t size, size_t *bytes_read, uint32_t timeout_ms);

/* events, network, Wi-Fi */
typedef const char *esp_event_base_t;
typedef void (*esp_event_handler_t)(void *user, esp_event_base_t base, int32_t id, void *data);
extern esp_event_base_t const WIFI_EVENT, IP_EVENT;
enum { ESP_EVENT_ANY_ID = -1, WIFI_EVENT_STA_START = 2, WIFI_EVENT_STA_DISCONNECTED = 5, IP_EVENT_STA_GOT_IP = 0 };
esp_err_t esp_event_loop_create_default(void);
esp_err_t esp_event_handler_register(esp_event_base_t base, int32_t id, esp_event_handler_t handler, void *user);
esp_err_t esp_netif_init(void);
void *esp_netif_create_default_wifi_sta(void);
typedef struct {
    int magic;
} wifi_init_config_t;
#define WIFI_INIT_CONFIG_DEFAULT() {.magic = 1}
typedef union {
    struct {
        uint8_t ssid[32], password[64];
    } sta;
} wifi_config_t;
typedef enum { WIFI_MODE_STA = 1 } wifi_mode_t;
typedef enum { WIFI_IF_STA } wifi_interface_t;
esp_err_t esp_wifi_init(const wifi_init_config_t *config);
esp_err_t esp_wifi_set_mode(wifi_mode_t mode);
esp_err_t esp_wifi_set_config(wifi_interface_t interface, wifi_config_t *config);
esp_err_t esp_wifi_start(void);
esp_err_t esp_wifi_connect(void);

/* espressif/esp_websocket_client */
typedef struct esp_websocket_client *esp_websocket_client_handle_t;
typedef enum {
    WEBSOCKET_EVENT_ANY = -1,
    WEBSOCKET_EVENT_ERROR = 0,
    WEBSOCKET_EVENT_CONNECTED,
    WEBSOCKET_EVENT_DISCONNECTED,
    WEBSOCKET_EVENT_DATA
} esp_websocket_event_id_t;
typedef struct {
    const char *data_ptr;
    int data_len;
    bool fin;
    uint8_t op_code;
    esp_websocket_client_handle_t client;
    void *user_context;
    int payload_len, payload_offset;
} esp_websocket_event_data_t;
typedef struct {
    const char *uri;
    int buffer_size, reconnect_timeout_ms, network_timeout_ms;
    esp_err_t (*crt_bundle_attach)(void *conf);
} esp_websocket_client_config_t;
esp_err_t esp_crt_bundle_attach(void *conf);
esp_websocket_client_handle_t esp_websocket_client_init(const esp_websocket_client_config_t *config);
esp_err_t esp_websocket_register_events(esp_websocket_client_handle_t client, esp_websocket_event_id_t event,
                                        esp_event_handler_t handler, void *user);
esp_err_t esp_websocket_client_start(esp_websocket_client_handle_t client);
esp_err_t esp_websocket_client_stop(esp_websocket_client_handle_t client);
int esp_websocket_client_send_bin(esp_websocket_client_handle_t client, const char *data, int len, TickType_t timeout);

#endif
