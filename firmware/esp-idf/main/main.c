/* An ESP32 that listens: I2S microphone -> TinyStream -> WebSocket to a StreamSplit server.
 *
 * One task hears and codes, on the second core where there is one; the main task sends; the WebSocket's own task
 * receives. A lock keeps them out of each other's way: coding a frame of 20 ms holds it for a few milliseconds.
 */
#include <stdio.h>

#include "driver/i2s_std.h"
#include "esp_crt_bundle.h"
#include "esp_log.h"
#include "esp_random.h"
#include "esp_timer.h"
#include "esp_websocket_client.h"
#include "freertos/FreeRTOS.h"
#include "freertos/semphr.h"
#include "freertos/task.h"
#include "streamsplit_device.h"
#include "wifi.h"

#define LOG "streamsplit"
#define RATE 16000
#define BLOCK 320         /* samples read at once: 20 ms */
#define SAMPLE_SHIFT 14   /* of a 24-bit microphone's 32-bit slot to 16 bits, 12 dB up */
#define SEND_EVERY_MS 50
#define SEND_WAIT_MS 2000

static ss_device device;
static SemaphoreHandle_t lock;
static i2s_chan_handle_t microphone;
static volatile bool overflowed;

static uint32_t now_ms(void)
{
    return (uint32_t)(esp_timer_get_time() / 1000);
}

static bool on_overflow(i2s_chan_handle_t channel, i2s_event_data_t *event, void *user)
{
    (void)channel;
    (void)event;
    (void)user;
    overflowed = true;
    return false;
}

static void open_microphone(void)
{
    i2s_chan_config_t channel = I2S_CHANNEL_DEFAULT_CONFIG(I2S_NUM_AUTO, I2S_ROLE_MASTER);
    ESP_ERROR_CHECK(i2s_new_channel(&channel, NULL, &microphone));
    i2s_std_config_t config = {
        .clk_cfg = I2S_STD_CLK_DEFAULT_CONFIG(RATE),
        .slot_cfg = I2S_STD_PHILIPS_SLOT_DEFAULT_CONFIG(I2S_DATA_BIT_WIDTH_32BIT, I2S_SLOT_MODE_MONO),
        .gpio_cfg =
            {
                .mclk = I2S_GPIO_UNUSED,
                .bclk = (gpio_num_t)CONFIG_STREAMSPLIT_PIN_BCLK,
                .ws = (gpio_num_t)CONFIG_STREAMSPLIT_PIN_WS,
                .dout = I2S_GPIO_UNUSED,
                .din = (gpio_num_t)CONFIG_STREAMSPLIT_PIN_DIN,
            },
    };
    ESP_ERROR_CHECK(i2s_channel_init_std_mode(microphone, &config));
    i2s_event_callbacks_t callbacks = {.on_recv_q_ovf = on_overflow};
    ESP_ERROR_CHECK(i2s_channel_register_event_callback(microphone, &callbacks, NULL));
    ESP_ERROR_CHECK(i2s_channel_enable(microphone));
}

/* 16 bits without the microphone's offset: a slow mean is taken away. */
static int16_t level(int32_t raw, int32_t *mean)
{
    int32_t value = raw >> SAMPLE_SHIFT;
    *mean += (value * 256 - *mean) / 1024;
    value -= *mean / 256;
    return (int16_t)(value > INT16_MAX ? INT16_MAX : value < INT16_MIN ? INT16_MIN : value);
}

static void listen(void *user)
{
    static int32_t raw[BLOCK];
    static int16_t samples[BLOCK];
    int32_t mean = 0;
    (void)user;
    for (;;) {
        size_t size = 0;
        if (i2s_channel_read(microphone, raw, sizeof raw, &size, portMAX_DELAY) != ESP_OK)
            continue;
        for (size_t i = 0; i < size / sizeof *raw; i++)
            samples[i] = level(raw[i], &mean);
        xSemaphoreTake(lock, portMAX_DELAY);
        if (overflowed) {
            overflowed = false;
            ss_gap(&device);
            ESP_LOGW(LOG, "sound was lost");
        }
        ss_hear(&device, samples, size / sizeof *raw, now_ms());
        xSemaphoreGive(lock);
    }
}

static void on_websocket(void *user, esp_event_base_t base, int32_t id, void *data)
{
    const esp_websocket_event_data_t *event = data;
    (void)user;
    (void)base;
    xSemaphoreTake(lock, portMAX_DELAY);
    if (id == WEBSOCKET_EVENT_CONNECTED)
        ss_connected(&device, now_ms());
    else if (id == WEBSOCKET_EVENT_DISCONNECTED)
        ss_disconnected(&device);
    else if (id == WEBSOCKET_EVENT_DATA && event->op_code == 2) /* binary */
        ss_receive(&device, (const uint8_t *)event->data_ptr, (size_t)event->data_len, (size_t)event->payload_offset,
                   (size_t)event->payload_len, now_ms());
    xSemaphoreGive(lock);
}

static void on_result(void *user, const ss_result *result)
{
    (void)user;
    ESP_LOGI(LOG, "window %u: '%s' (%d %%), cluster %d", (unsigned)result->window, result->label,
             (int)(100 * result->confidence), (int)result->cluster);
}

/* What is due goes out; the lock is not held while the network is waited for. */
static void send_due(esp_websocket_client_handle_t client)
{
    static uint8_t message[SS_SEND_BYTES];
    for (;;) {
        xSemaphoreTake(lock, portMAX_DELAY);
        size_t size = ss_send(&device, message, sizeof message, now_ms());
        xSemaphoreGive(lock);
        if (size == 0)
            return;
        if (esp_websocket_client_send_bin(client, (const char *)message, (int)size, pdMS_TO_TICKS(SEND_WAIT_MS)) < 0)
            return; /* the client connects again, and the window goes out again */
    }
}

void app_main(void)
{
    ss_config config = {
        .device_id = CONFIG_STREAMSPLIT_ID,
        .token = CONFIG_STREAMSPLIT_TOKEN,
        .device_class = "esp32",
        .epoch = ((uint64_t)esp_random() << 32 | esp_random()) >> 1,
        .quantizers = CONFIG_STREAMSPLIT_QUANTIZERS,
        .on_result = on_result,
    };
    if (ss_start(&device, &config)) {
        ESP_LOGE(LOG, "got device id '%s', expected 1 to 64 letters, digits, '.', '_', '-'", CONFIG_STREAMSPLIT_ID);
        return;
    }
    lock = xSemaphoreCreateMutex();
    open_microphone();
    xTaskCreatePinnedToCore(listen, "listen", 8192, NULL, 10, NULL, portNUM_PROCESSORS - 1);
    wifi_start(CONFIG_STREAMSPLIT_WIFI_SSID, CONFIG_STREAMSPLIT_WIFI_PASSWORD);
    esp_websocket_client_config_t link = {
        .uri = CONFIG_STREAMSPLIT_URL,
        .buffer_size = SS_RECEIVE_BYTES,
        .reconnect_timeout_ms = 2000,
        .network_timeout_ms = 10000,
        .crt_bundle_attach = esp_crt_bundle_attach,
    };
    esp_websocket_client_handle_t client = esp_websocket_client_init(&link);
    ESP_ERROR_CHECK(esp_websocket_register_events(client, WEBSOCKET_EVENT_ANY, on_websocket, NULL));
    ESP_ERROR_CHECK(esp_websocket_client_start(client));
    for (;;) {
        send_due(client);
        vTaskDelay(pdMS_TO_TICKS(SEND_EVERY_MS));
        xSemaphoreTake(lock, portMAX_DELAY);
        bool over = ss_should_close(&device, now_ms()), refused = device.refused != 0;
        xSemaphoreGive(lock);
        if (!over)
            continue;
        ESP_LOGE(LOG, "%s", device.problem);
        esp_websocket_client_stop(client);
        xSemaphoreTake(lock, portMAX_DELAY);
        ss_disconnected(&device);
        xSemaphoreGive(lock);
        if (refused)
            return; /* it would be turned away again; listening goes on into the ring */
        ESP_ERROR_CHECK(esp_websocket_client_start(client));
    }
}
