import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Requests with the client that every JVM has, which is told of no CA: `java Ask METHOD URL METHOD URL …`. */
public class Ask {
    public static void main(String[] words) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int at = 0; at < words.length; at += 2) {
            HttpRequest asked = HttpRequest.newBuilder(URI.create(words[at + 1]))
                .method(words[at], HttpRequest.BodyPublishers.noBody()).build();
            HttpResponse<String> answer = client.send(asked, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
